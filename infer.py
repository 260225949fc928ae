"""Speak with a checkpoint: `python infer.py checkpoint=outputs/… text="Ciao, come stai?" output=ciao.wav`."""

from llasa.config import InferConfig
from llasa.entry import entry


@entry("infer")
def main(config: InferConfig) -> None:
    from llasa.generation.run import infer

    infer(config)


if __name__ == "__main__":
    main()
