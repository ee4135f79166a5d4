"""Federated learning simulation on JAX: a round is a pure function, a training run one scan.

    >>> import jax, optax
    >>> from fedjax_sim import algorithms, datasets, models, partition, simulate
    >>> from fedjax_sim.data import Batching, federate
    >>> adult = datasets.adult()
    >>> train = federate(adult.train, partition.by_group(adult.train_groups["education"]))
    >>> model = models.logistic(adult.num_classes)
    >>> fedavg = algorithms.fedavg(
    ...     model, client_optimizer=optax.sgd(0.1), batching=Batching(num_steps=10)
    ... )
    >>> params = model.init(jax.random.key(0), adult.train["x"][:1])
    >>> result = simulate.run(fedavg, params, train, key=jax.random.key(1), num_rounds=3)
    >>> result.info.cohort.clients["loss"].shape  # rounds x clients
    (3, 16)

Importing the package loads nothing; import what you need by module:

    datasets, partition, data        examples, who owns which, and both on the device
    models, metrics                  what is trained, what is minimised and measured
    clients, sampling, aggregators   the parts of a round; their contracts are in `base`
    matching                         networks trained apart, merged neuron by neuron
    attacks, poisoning               what malicious clients send, and what they train on
    rounds, algorithms               the engine that composes parts, and named algorithms
    simulate                         `run` an algorithm, `sweep` over seeds and hyperparameters
    plots, runfolder                 pictures, and what a run leaves on disk
"""

__version__ = "0.1.0"
