"""Serve a checkpoint over HTTP: `python serve.py checkpoint=outputs/… port=8000`."""

from llasa.config import ServeConfig
from llasa.entry import entry


@entry("serve")
def main(config: ServeConfig) -> None:
    from llasa.serving.run import serve

    serve(config)


if __name__ == "__main__":
    main()
