"""Plans: many replicas failed over in order, from one machine or from many.

A plan file (file.py) becomes a run (running.py). Everything that happens in a run is an
event in the run's database (store.py), and what a run is at any moment is the fold of its
events (events.py). From that and from the plan's shape, order.py decides what starts next.
DBOS (durable.py) carries it out on the queues of the mount hosts and goes on after a crash:
each task (task.py) is made of steps that may be done again.

Imported by plan commands only: DBOS and SQLAlchemy take longer to import than a failover.
"""
