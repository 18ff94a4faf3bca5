"""The training stack that all trainers share.

How to write a trainer:

1. Write a dataclass of its settings that inherits from ``settings.Settings``. The comment after a field is its help
   text. ``examples/settings.json`` has the defaults for each trainer and data set.
2. Write a ``main()`` with the decorator ``@command_line``::

    settings = parse(CBSTSettings, __doc__)     # from the command line
    run = Run(settings)                         # processes, precision, checkpoints, trackers (Accelerate)
    data = open_data(settings, run)             # source, target, val
    net = build(settings, data.label_map.num_classes)
    student, optimizer = run.prepare(net), run.optimizer(net)
    run.register(teacher=teacher)               # other objects whose state_dict goes into checkpoints
    run.restore()                               # from the last checkpoint, if there is one
    score_before(net, data, run)                # rounds -1 and 0: source only, BatchNorm re-estimated

3. Train in stages, one after the other. A stage has a name and a number of steps::

    for number in range(1, settings.rounds + 1):
        stage = f"round{number}"
        if run.passed(stage):                   # a later stage has begun
            continue
        stored = label_target(...)              # label the target images; a finished round is only opened
        source = run.loader(data.source, f"{stage} source", training_transform(settings.crop))
        for step, (images, labels) in run.steps(stage, settings.steps, source):
            with run.accumulate(student):
                loss = ...
                run.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            run.log(loss=loss)
        score = evaluate(net, data, run, number)

   ``run.steps`` sets the learning rates, seeds all random numbers from (seed, stage, step), saves checkpoints, and
   yields only the remaining steps. A run that is killed and resumed therefore gives the same result.
4. End with ``run.finish(net, summary(score, data))``.

With ``--accumulate N``, ``run.steps`` yields each step N times with different batches; ``run.is_last_pass`` is True
when the optimizer steps. ``run.mean(total, count)`` divides a sum by the count over all processes, as
``losses.supervised_loss`` does. ``_labelling/`` has the rounds of pseudo-labels.
"""
