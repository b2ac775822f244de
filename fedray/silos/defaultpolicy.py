"""The policy that ``fedray silo policy`` prints: a place to begin, in which every key stands with what it decides."""

from __future__ import annotations

TEXT = """\
# What runs may ask of this silo. Whatever is not named here is refused, and each refusal names its line.
# The file is read again before every training, so a change holds at once, for runs that are under way, too.

# -- what is trained --------------------------------------------------------------------------------
models: [softmax, logistic, linear]     # model.kind; {kind: mlp, hidden: [64]} allows that one size alone
adapters: []                            # model.adapters.kind
weights: []                             # model.weights: files and addresses that may be read
algorithms: [fedavg, fedprox]           # algorithm.kind
losses: [cross_entropy, binary_cross_entropy, mse]    # training.loss
compressions: []                        # compression.kind besides none
bounds: []                              # bound.kind besides none
code: {}                                # own code that is installed HERE, by the SHA-256 of its file:
                                        # {"python:clinic.models:net": 9f86...}; fedray silo digest prints it. It must be in its list, too.

# -- how records are protected ----------------------------------------------------------------------
regimes: [record]                       # privacy.regime: none, record, client, local, distributed
mechanisms: []                          # privacy.mechanism.kind, for client, local and distributed
epsilon_run: 2.0                        # largest epsilon of one run
epsilon_total: 4.0                      # largest epsilon of all runs together, by this silo's own ledger
delta: 1.0e-5                           # largest delta
noise_multiplier: 0.5                   # smallest noise multiplier
void_claims: false                      # runs whose guarantee does not hold (privacy.unprotected, privacy.insecure_seed)

# -- who reads an update ----------------------------------------------------------------------------
unmasked: noised                        # updates that the driver reads one by one: never, noised (they carry their own noise), always
secure: []                              # secure.kind; best with its files:
                                        # [{kind: secagg, identities: /etc/fedray/identities.json, key: /etc/fedray/{client}.key}]
cohort: 5                               # smallest number of clients in a secure sum
unsigned_keys: false                    # secure sums without identities: the driver is believed whose keys are whose

# -- what else leaves -------------------------------------------------------------------------------
facts: [records]                        # records, class_counts, loss, evaluation, charged_evaluation, timings, errors, host
metrics: []                             # evaluation.metrics on held-out records
held_out: 50                            # fewest held-out records over which a metric is told without noise
evaluations_a_day: 0                    # evaluations on held-out records, of all runs
fine_tune: false                        # training for an evaluation (evaluation.fine_tune)

# -- when, how often, and who decides ---------------------------------------------------------------
hours: always                           # or [20:00-06:00, 12:00-13:00]
time_zone: UTC                          # of hours and days
rounds: 200                             # largest number of rounds of a run
rounds_a_day: 500                       # trainings, of all runs
approval: true                          # each run waits for fedray silo approve
"""
