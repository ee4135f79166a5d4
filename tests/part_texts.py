"""Every public part as text, and a file of a user's own parts."""

from fedjax_sim import base

OWN = '''
import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_sim import aggregators


def halved(aggregator, *, factor=0.5):
    """Without annotations."""
    def apply(key, state, updates, weights):
        return aggregator.apply(key, state, jax.tree.map(lambda u: factor * u, updates), weights)

    return aggregator._replace(apply=apply)


def nothing():
    return 3


def squared(outputs, labels):
    return (outputs[:, 0] - labels) ** 2


def penalty(params):
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))


def accuracy(params):
    return jnp.float32(0.5)


def init(key, inputs):
    return {"w": jnp.zeros((6, 3))}


def apply(params, inputs):
    return inputs @ params["w"]


def same(message):
    return message


def begun(key, params, data):
    return params


def moved(key, params, aggregate, report):
    return jax.tree.map(jnp.add, params, aggregate), {}


def shown(state):
    return state


def brier(outputs, labels, mask):
    return jnp.float32(0.5)


def objective(leaves, batch, key, message):
    raise NotImplementedError


class Net(nn.Module):
    width: int = 4

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(self.width)(x)))
'''

ONE = "{x: [[0.0, 0.0, 0.0, 0.0, 0.0, 1.0]], y: [1]}"
# Every public part, with what it needs; {own} is a file of the user's, {one} an example.
TEXTS: dict[type, list[str]] = {
    base.Aggregator: [
        "arc(mean, num_byzantine=1)",
        "bucketing(geometric_median, bucket_size=2)",
        "bulyan(num_byzantine=1)",
        "caf(num_byzantine=1)",
        "centered_clipping(radius=1.0)",
        "clipped_clustering(num_remembered=10)",
        "common_descent",
        "coordinate_median",
        "distributed_dp(num_slots=7, max_norm=1.0, noise_multiplier=0.5, bits=16)",
        "dnc(num_byzantine=1)",
        "flame",
        "fltrust",
        "foolsgold",
        "geometric_median(start=zero)",
        "krum(num_byzantine=1)",
        "majority_vote",
        "mda(num_byzantine=1)",
        "meamed(num_byzantine=1)",
        "mean",
        "monna(num_byzantine=1)",
        "multi_krum(num_byzantine=1, num_selected=3)",
        "nnm(krum(num_byzantine=1), num_byzantine=1)",
        "norm_clipping(mean(), max_norm=1/2)",
        "secure(mean, num_slots=7, max_abs=1.0, max_weight=50.0, masked=True)",
        "private_mean(gaussian(1.0), max_norm=0.5, expected_size=5, "
        "adaptive=AdaptiveClipping(quantile=0.8))",
        "signguard(lower=0.2)",
        "smea(num_byzantine=1)",
        "trimmed_mean(num_byzantine=1)",
        "uniform_mean",
        "nnm('{own}:halved'(trimmed_mean(num_byzantine=1), factor=0.1), num_byzantine=1)",
    ],
    base.Attack: [
        "adaptive(inner_product, krum(num_byzantine=1), strengths=[0.5, 2])",
        "chain(gaussian(0.1), sign_flip)",
        "choice([gaussian(0.1), sign_flip(scale=2.0), no_attack], 1)",
        "delayed(sign_flip, first_round=1)",
        "deviation(1.5, direction=unit)",
        "fang_krum(krum(num_byzantine=1))",
        "fang_trimmed_mean",
        "free_rider",
        "gaussian(0.1)",
        "inner_product(0.5)",
        "little_is_enough",
        "mimic(warmup=2)",
        "min_max(knows=own)",
        "min_sum",
        "monitored(sign_flip, accuracy='{own}:accuracy')",
        "neurotoxin(0.1)",
        "no_attack",
        "scaling(2.0)",
        "sign_flip",
    ],
    base.Sampler: [
        "by_weight(3, weights=[1, 2, 3, 1, 1, 1, 1])",
        "everyone",
        "in_epochs(3)",
        "poisson(3)",
        "uniform(5)",
        "with_root(uniform(5))",
    ],
    base.Uplink: [
        "chain(clip(1.0), identity)",
        "chain(clip(1.0), gaussian_noise(0.5))",
        "clip(0.5, per_layer=True)",
        "gaussian_noise(0.1)",
        "laplace_noise(scale=0.1)",
        "drive(unbiased=false)",
        "ef21(top_k(0.5))",
        "eden(bits=2, block_size=1024)",
        "error_feedback(chain(top_k(0.1), uniform_quantization(4)))",
        "identity",
        "qsgd(4, bucket_size=512)",
        "random_k(0.1)",
        "rotation",
        "sign",
        "top_k(0.1)",
        "uniform_quantization(8)",
    ],
    base.Noise: [
        "banded(1.0, num_bands=3)",
        "gaussian(1.0)",
        "laplace(0.5)",
        "tree(1.0)",
    ],
    base.Server: [
        "compressed(server_optimizer(sgd(1.0)), top_k(0.1))",
        "server_optimizer(adam(0.1))",
        "sharing('{own}:begun', '{own}:moved', shared='{own}:shown', params='{own}:shown')",
        "with_history(server_optimizer(sgd(1.0)))",
    ],
    base.ClientRule: [
        "adapt(local_sgd(sgd(0.1)), message='{own}:same')",
        "alternating_poisoning(sgd(0.1), targets={one}, boost=2.0)",
        "ditto(sgd(0.1), personal_learning_rate=0.1, pull=1.0)",
        "dp_sgd(sgd(0.1), max_norm=1.0, noise_multiplier=0.5)",
        "local_parts(local_sgd(sgd(0.1)), '*bias')",
        "local_sgd(sgd(0.1, momentum=0.9), regularizer='{own}:penalty')",
        "local_steps('{own}:objective', sgd(0.1))",
        "malicious(local_sgd(sgd(0.1)), stealthy_poisoning(sgd(0.1), "
        "targets={one}, boost=2.0), [0, 1])",
        "prox(sgd(0.1), mu=0.1)",
        "scaffold(learning_rate=cosine_decay_schedule(0.1, 10))",
        "sharpness_aware(sgd(0.1), rho=0.05, adaptivity=0.2)",
        "stealthy_poisoning(sgd(0.1), targets={one}, boost=2.0)",
        "targeted_poisoning(sgd(0.1), targets={one}, boost=2.0)",
        "worker_momentum(local_sgd(adamw(0.1)), momentum=0.9)",
    ],
    base.Model: [
        "build(mlp)",
        "char_lstm(hidden=8)",
        "emnist_cnn(dropout=[0, 0])",
        "freeze(mlp, 'dense_0/*')",
        "from_functions('{own}:init', '{own}:apply')",
        "from_linen('{own}:Net'(width=5))",
        "lenet(channels=[2, 3], hidden=4)",
        "lens_cnn(activation=tanh)",
        "logistic(init=zeros)",
        "mixed_precision(mlp(hidden=[8]), dtype=bfloat16)",
        "mlp(hidden=[8], activation=gelu)",
        "mnist_cnn",
        "scaled_outputs(mlp, shift=[0, 0, 1], scale=2.0)",
        "simple_cnn",
    ],
    base.ClientMetric: [
        "calibration_error(num_bins=5)",
        "each_client('{own}:brier')",
        "f1(micro)",
    ],
    base.Algorithm: [
        "agnostic(optimizer=sgd(0.1), ascent=Ascent(0.01), batch_size=4)",
        "agnostic_fedavg(client_optimizer=sgd(0.1), ascent=Ascent(0.01), batching=Batching(4))",
        "averaging(worker_momentum(local_sgd(sgd(0.1)), momentum=0.9), batching=Batching(4))",
        "ditto(client_optimizer=sgd(0.1), personal_learning_rate=0.1, pull=1.0, "
        "batching=Batching(4))",
        "dp_fedavg(client_optimizer=sgd(0.1), batching=Batching(None, num_steps=1), "
        "cohort_size=5, max_norm=1.0, target_epsilon=2.0, "
        "adaptive=AdaptiveClipping(0.5))",
        "dp_ftrl(client_optimizer=sgd(0.1), batching=Batching(4), cohort_size=2, max_norm=1.0, "
        "noise_multiplier=1.0, mechanism=tree, server=sgd(1.0, momentum=0.9))",
        "drfa(client_optimizer=sgd(0.1), mixture_step_size=0.1, cohort_size=3, "
        "batching=Batching(4, num_steps=3))",
        "fair_flearn_afl(learning_rate=0.1, mixture_step_size=0.1)",
        "fedavg(client_optimizer=sgd(0.1), batching=Batching(4), sampler=uniform(5), "
        "aggregator=krum(num_byzantine=1), attack=little_is_enough, malicious=[0])",
        "feddf(unlabelled=[[0.0, 0.0, 0.0, 0.0, 0.0, 1.0]], client_optimizer=sgd(0.1), "
        "batching=Batching(4), num_distillation_steps=2)",
        "feddyn(alpha=0.1, client_optimizer=sgd(0.1), batching=Batching(4))",
        "federated(rule=local_sgd(sgd(0.1)), sampler=everyone, aggregator=mean, "
        "server=server_optimizer(sgd(1.0)), batching=Batching(4), uplink=clip(1.0))",
        "fedbabu(client_optimizer=sgd(0.1), batching=Batching(4), head='*bias', "
        "personal_optimizer=adam(0.01), personal_batching=Batching(4, num_epochs=5))",
        "fine_tuned(fedavg(client_optimizer=sgd(0.1), batching=Batching(4)), local_sgd(sgd(0.1)), "
        "batching=Batching(4))",
        "fedbn(client_optimizer=sgd(0.1), batching=Batching(4), local='*bias')",
        "fedper(client_optimizer=sgd(0.1), batching=Batching(4), head='*bias')",
        "fedrep(client_optimizer=sgd(0.1), batching=Batching(4), head_fraction=0.7, head='*bias')",
        "fedrod(client_optimizer=sgd(0.1), batching=Batching(4), head='*bias')",
        "lg_fedavg(client_optimizer=sgd(0.1), batching=Batching(4), head='*kernel')",
        "fedavgm(client_optimizer=sgd(0.1), batching=Batching(4))",
        "fedadam(client_optimizer=sgd(0.1), batching=Batching(4), server_learning_rate=0.1)",
        "fedyogi(client_optimizer=sgd(0.1), batching=Batching(4))",
        "fedadagrad(client_optimizer=sgd(0.1), batching=Batching(4))",
        "fednova(client_learning_rate=0.1, client_momentum=0.5, batching=Batching(4))",
        "fedexp(client_optimizer=sgd(0.1), server_epsilon=0.1, batching=Batching(4))",
        "scaffnew(client_learning_rate=0.1, probability=0.5, batching=Batching(4, num_steps=3))",
        "fedsam(rho=0.05, client_optimizer=sgd(0.1), batching=Batching(4))",
        "fedlc(temperature=1.0, client_optimizer=sgd(0.1), batching=Batching(4))",
        "mime(client_optimizer=sgd(0.1, momentum=0.9), batching=Batching(4))",
        "mimelite(client_optimizer=adam(0.01), batching=Batching(4))",
        "fedcm(alpha=0.1, client_learning_rate=0.1, batching=Batching(4))",
        "fedfv(client_optimizer=sgd(0.1), batching=Batching(4))",
        "fedmgda(client_optimizer=sgd(0.1), server_learning_rate=1.0, batching=Batching(4))",
        "fedprox(mu=0.1, client_optimizer=adamw(cosine_decay_schedule(0.1, 10)), "
        "batching={{batch_size: 4, num_epochs: 2}})",
        "propfair(baseline=3.0, client_optimizer=sgd(0.1), batching=Batching(4))",
        "ifca(num_clusters=2, client_optimizer=sgd(0.1), batching=Batching(4), spread=1.0)",
        "apfl(alpha=0.5, client_learning_rate=0.1, batching=Batching(4), alpha_learning_rate=0.1)",
        "per_fedavg(alpha=0.1, client_learning_rate=0.1, variant=hessian_free, "
        "batching=Batching(4))",
        "pfedme(pull=15.0, personal_learning_rate=0.01, client_learning_rate=0.01, "
        "batching=Batching(4), beta=2.0)",
        "fedala(client_optimizer=sgd(0.1), batching=Batching(4), adapted=kernel)",
        "q_fedavg(q=1.0, client_learning_rate=cosine_decay_schedule(0.1, 10), "
        "batching=Batching(4))",
        "scaffold(client_learning_rate=0.1, batching=Batching(4))",
        "simplicial_fl(theta=0.5, client_optimizer=sgd(0.1), batching=Batching(4))",
        "term(t=1.0, client_optimizer=sgd(0.1), batching=Batching(4))",
    ],
}
UNFINISHED = ("local_steps", "scaffold(learning_rate")
"""Rules that need an objective, or a server, of their own."""
WITHOUT = {
    "from_nnx": "takes a module that is made with keys of its own",
    "fedproto": "needs a model with a hidden layer, as moon does",
    "moon": "needs a model with a hidden layer, which is below",
    "pfnm": "needs a model of bare layers, which is below",
}
