"""Train a LLaSA model on a token store: `python train.py model=llasa_1b lang=it`."""

from llasa.config import TrainConfig
from llasa.entry import entry


@entry("train")
def main(config: TrainConfig) -> float | None:
    from llasa.training.run import train

    return train(config)


if __name__ == "__main__":
    main()
