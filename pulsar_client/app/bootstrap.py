"""The first code of a worker's interpreter: run as a script by the arbiter.

Usage: ``bootstrap.py DESCRIPTOR [NAME]``; the descriptor is of a file with the pickled
``WorkerOrder``, which the arbiter wrote and nobody else can reach.
"""

import sys

# This file's own directory must not hide modules of the same names.
del sys.path[0]

if __name__ == "__main__":
    import pickle

    with open(int(sys.argv[1]), "rb") as file:
        sys.path[:] = pickle.load(file)
        from pulsar_client.app import worker_process

        sys.exit(worker_process.main(file))
