"""One unit of each stage's work, as plain functions: what an actor calls on a cluster, and the
command line alone.

    teach.make_shard  ->  trial.run_baselines, trial.run_trial  ->  evaluate.sample_part,
                      evaluate.finish

Each names its result by its settings, returns at once if that result is there, and writes it
atomically: any of them may be killed at any point and called again."""
