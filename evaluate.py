"""Measure checkpoints: `python evaluate.py checkpoint=outputs/… store=data/… split=test asr=base output=report`."""

from llasa.config import EvaluateConfig
from llasa.entry import entry


@entry("evaluate")
def main(config: EvaluateConfig) -> None:
    from llasa.evaluation.run import evaluate

    evaluate(config)


if __name__ == "__main__":
    main()
