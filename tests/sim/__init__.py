"""The whole system in one thread: real queue, clients and workers under a virtual clock, in an order drawn by a seed.

Theory of operation. Everything that waits is made by `taskq.threads`; here those are greenlets that take turns
(`scheduler`). What really comes from outside is played: the network as frames between channels (`network`), the disk
as a store that loses what was not committed (`disk`), processes that crash and pause (`processes`). All else is the
code that runs in earnest. `nemesis` breaks things, `run` plays one seed and gives the verdict.
"""
