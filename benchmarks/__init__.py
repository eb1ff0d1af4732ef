"""What ipyvram costs, measured: ``python -m benchmarks`` prints a table and writes JSON to ``benchmarks/results``.

Every row runs in a process of its own, the bare cell and the measured one in turn (A B A B …), and gives medians with
their spread. CPU seconds of the process stand beside the wall clock's: on a busy machine they are the steadier of the two.
"""
