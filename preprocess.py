"""Turn a corpus into a token store: `python preprocess.py lang=it`."""

from llasa.config import PreprocessConfig
from llasa.entry import entry


@entry("preprocess")
def main(config: PreprocessConfig) -> None:
    from llasa.corpus.run import run

    run(config)


if __name__ == "__main__":
    main()
