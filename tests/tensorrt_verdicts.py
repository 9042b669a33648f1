"""Asks the installed library for its verdict on every graph; prints JSON: by name the verdict and what was said.

Run as a script. Each graph has a process of its own, for the parser crashes on some.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from tensorrt_graphs import GRAPHS

from secateur.export.tensorrt.layers import layers_of_log
from secateur.export.tensorrt.library import load_library
from secateur.export.tensorrt.log import logger, messages, recording


def verdict(library, model):
    """`built` with its layers, or where it failed."""
    module = library.module
    with recording(module) as log:
        builder = module.Builder(logger(module))
        network = library.create_network(builder)
        parser = module.OnnxParser(network, logger(module))
        if not parser.parse(model.SerializeToString()):
            return ["parser", "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))]
        config = builder.create_builder_config()
        config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
        library.set_capabilities(config, ("8.6",))
        if builder.build_serialized_network(network, config) is None:
            return ["builder", "; ".join(messages(log, "ERROR"))]
        text = next((text for _, text in log if text.startswith("Layers:")), "")
        return ["built", [[layer.kind, layer.inputs[:1]] for layer in layers_of_log(text)]]


def main():
    library = load_library("tensorrt_rtx")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        for name, make in GRAPHS.items():
            model = make()
            answer.unlink(missing_ok=True)
            child = os.fork()
            if child == 0:
                sys.stdout = sys.stderr
                answer.write_text(json.dumps(verdict(library, model)))
                os._exit(0)
            _, status = os.waitpid(child, 0)
            found[name] = json.loads(answer.read_text()) if status == 0 else ["crash", str(status)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
