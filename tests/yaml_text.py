"""Recipe texts that several tests start from."""

MINIMAL = """\
version: 1
model: {factory: "tiny_recipe:model"}
data: {factory: "tiny_recipe:loaders", args: {}}
budget: {macs: 50%}
"""

TINY = """\
version: 1
model: {factory: "${TINY_DIR}/tiny_recipe.py:model"}
data: {factory: "${TINY_DIR}/tiny_recipe.py:loaders", args: {}}
budget: {macs: 60%}
rank: {method: hap, samples: 64, probes: 4}
heal: {epochs: 1, lr: 0.01, precision: fp32}
quantize: {samples: 64, when: never}
gates:
  accuracy: {}
  latency: {batches: [1], seconds: 0.3}
seed: 0
threads: 1
"""
