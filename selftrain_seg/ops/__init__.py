"""The ground floor: what differs by device."""
