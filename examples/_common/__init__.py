"""The training stack that all trainers share.

How a trainer is written:

1. A dataclass of its settings, a child of ``settings.Settings``; the comment after a field is its help text. Defaults
   come from ``examples/settings.json``, by trainer and data.
2. A ``main()`` under ``@command_line``::

    settings = parse(CBSTSettings, __doc__)     # the command line, typed
    run = Run(settings)                         # processes, precision, checkpoints, trackers: an Accelerator inside
    data = open_data(settings, run)             # source, target, val
    net = build(settings, data.label_map.num_classes)
    student, optimizer = run.prepare(net), run.optimizer(net)
    run.register(teacher=teacher)               # whatever else has a state_dict and belongs into checkpoints
    run.restore()                               # the last checkpoint of a run that was interrupted
    score_before(net, data, run)                # rounds -1 and 0: source only, BatchNorm re-estimated

3. Stages. A stage has a name and a number of steps; a run consists of one stage after the other::

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

   ``run.steps`` sets the learning rates, seeds all random numbers from (seed, stage, step), saves a checkpoint every
   so often, and yields only the steps that are left. So a killed run does what it would have done.
4. ``run.finish(net, summary(score, data))``.

With ``--accumulate N`` ``run.steps`` yields each step N times, with other batches; ``run.is_last_pass`` says when the
optimizer has stepped. ``run.mean(total, count)`` divides a sum by the count of all processes.
"""
