"""Train or fine-tune the codec: `python train_codec.py codec_model=xcodec2_nano dataset=folder dataset.path=DIR`."""

from llasa.config import TrainCodecConfig
from llasa.entry import entry


@entry("train_codec")
def main(config: TrainCodecConfig) -> float | None:
    from llasa.codec_training.run import train_codec

    return train_codec(config)


if __name__ == "__main__":
    main()
