"""What ``benchmarks/peers.py`` is made of.

rows.py      what is measured: scenes, and in each a row for every framework and setting
cells.py     the code that the scripted root model replies with, in the form that each framework wants
venvs.py     a virtual environment for each peer
running.py   one row: provider, driver process, memory, time limit
report.py    Markdown from the figures;  chart.py  the picture from the figures
raw.py       a client that does nothing but ask: what the provider can carry

Run with the Python of the framework that they drive, standard library and that framework alone:
driver.py    what all drivers share;  markers.py  words that tell runs apart;  meter.py  wall clock, CPU, no traffic but loopback
drive_arlm.py, drive_rlms.py, drive_dspy.py
"""
