"""The broker: a small web application that runs where model code runs, for places that only HTTP reaches.

It owns the supervisor and passes bytes between it and the host, who polls. Python 3.10 and later, Starlette and uvicorn; it is shipped with
both in one archive (``environments.archive``), so that a sandbox needs neither pip nor a network.
"""
