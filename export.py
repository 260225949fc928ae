"""Write a checkpoint for other programs: `python export.py checkpoint=outputs/… format=merged output=exported`."""

from llasa.config import ExportConfig
from llasa.entry import entry


@entry("export")
def main(config: ExportConfig) -> None:
    from llasa.generation.export import export

    export(config)


if __name__ == "__main__":
    main()
