"""Stand-ins for model servers and for the command lines that steer them. Standard library only.

They are started by hooks, as programs of their real names; see `tests.hooks.bench`. What they share
with the tests lies in the folder `$STANDIN_DIR`:

    faults      words, one a line: what goes wrong
    calls       what they were asked, one a line
    gpu/        one file for each process that holds memory of the fake GPU, with its MiB
"""
