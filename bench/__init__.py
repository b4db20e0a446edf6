"""Benchmarks: cases in a registry, contestants in turns, rows in a file, tables and plots from the file.

    ipvae bench                       the quick suite, against plain PyTorch
    ipvae bench --suite full --json FILE --reference DIR
    ipvae bench report FILE...

`cases` says what is timed, `states` on which trained model, `contestants` by whom, `measure` how, `roofline`
against which bound, `report` shows it. Nothing imports this package but its tests.
"""
