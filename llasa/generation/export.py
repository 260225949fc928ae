"""The job behind `export.py`: a checkpoint, or the codec it speaks, as a folder for other programs.

    checkpoint or adapter ─► merged    plain transformers folder: vLLM, transformers, text-generation servers
                          ─► gguf      llama.cpp, through its own converter
    its codec             ─► codec_*   XCodec2's decoder alone (:mod:`llasa.codec.export`)

Every folder holds `export.json`, which says what it is and of what. Memory: the weights in their new type, beside an
adapter's base in float32 (an adapter is merged in float32 and rounded once).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from llasa.build import build
from llasa.config import ExportConfig, SamplingConfig
from llasa.config.exporting import CODEC
from llasa.entry import group_config
from llasa.errors import UserError
from llasa.generation.run import build_codec
from llasa.model.checkpoint import replaced_folder, require_same_codec, save_checkpoint
from llasa.model.llama import TokenContract, load_contract
from llasa.model.loading import is_adapter, load_model
from llasa.provenance import provenance, write_json

if TYPE_CHECKING:
    from transformers import GenerationConfig

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
OUTTYPES = {"bf16": "bf16", "fp16": "f16", "fp32": "f32"}
"""What llama.cpp's converter calls them."""
RECORD = "export.json"
GGUF_FILE = "model.gguf"


def export(config: ExportConfig) -> Path:
    """Write the folder ``config.output``; it appears whole or not at all.

    Raises:
        UserError: no such checkpoint, something else stands at ``output``, or the format cannot hold the checkpoint.
    """
    folder = Path(config.output).expanduser()
    require_free(folder, config)
    with replaced_folder(folder) as temporary:
        facts = export_codec(config, temporary) if config.format in CODEC else export_weights(config, temporary)
        record = {"format": config.format, "checkpoint": config.checkpoint} | facts | provenance()
        write_json(temporary / RECORD, record)
    print(f"{folder}: {config.format}, {sum(f.stat().st_size for f in folder.iterdir()) / 1e6:.1f} MB")
    return folder


def require_free(folder: Path, config: ExportConfig) -> None:
    """Only an earlier export is ever replaced.

    Raises:
        UserError: something stands there.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() and not (folder / RECORD).is_file():
        raise UserError(
            f"output={config.output} is there already and is no earlier export", remedy="choose another output="
        )
    if folder.exists() and not config.overwrite:
        raise UserError(
            f"output={config.output} holds an earlier export", remedy="pass overwrite=true, or choose another output="
        )
    if config.checkpoint is not None and folder.resolve() == Path(config.checkpoint).resolve():
        raise UserError(f"output={config.output} is the checkpoint itself", remedy="choose another output=")


def export_weights(config: ExportConfig, folder: Path) -> dict[str, str]:
    """format=merged or gguf; what the record says of it."""
    assert config.checkpoint is not None
    dtype = config.dtype or "bf16"
    contract = load_contract(config.checkpoint)
    if config.format == "merged":
        save_merged(config.checkpoint, contract, dtype, folder)
    else:
        save_gguf(config.checkpoint, contract, dtype, str(config.converter), folder)
    return {"dtype": dtype}


def save_merged(checkpoint: str, contract: TokenContract, dtype: str, folder: Path) -> None:
    """Plain weights with the tokenizer, the card and a generation config of speech."""
    held = "fp32" if is_adapter(checkpoint) else dtype
    model = load_model(checkpoint, "sdpa", DTYPES[held], "cpu")
    model.generation_config = generation_config(contract)
    save_checkpoint(folder, model, contract.tokenizer, contract.card, DTYPES[dtype])


def generation_config(contract: TokenContract) -> GenerationConfig:
    """What transformers and vLLM sample with unless told otherwise: the published sampling, and where speech ends."""
    from transformers import GenerationConfig

    sampling = SamplingConfig(**group_config("sampling", "default"))
    return GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        max_length=contract.card.max_length,
        bos_token_id=contract.tokenizer.bos_token_id,
        eos_token_id=contract.vocabulary.speech_end,
        pad_token_id=contract.tokenizer.pad_token_id,
    )


def save_gguf(checkpoint: str, contract: TokenContract, dtype: str, converter: str, folder: Path) -> None:
    """One GGUF file that llama.cpp's converter makes of the merged folder, and the card beside it.

    GGUF has one token that ends a text, and takes the tokenizer's: here the one that ends speech.

    Raises:
        UserError: there is no converter, or it does not take this checkpoint.
    """
    if not Path(converter).is_file():
        raise UserError(
            f"converter={converter} is no file",
            remedy="pass the path of convert_hf_to_gguf.py in a folder of llama.cpp's sources",
        )
    contract.tokenizer.eos_token = contract.tokenizer.convert_ids_to_tokens(contract.vocabulary.speech_end)
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=folder.parent) as merged:
        save_merged(checkpoint, contract, dtype, Path(merged) / "model")
        options = ["--outfile", str(folder / GGUF_FILE), "--outtype", OUTTYPES[dtype], "--model-name", "llasa"]
        command = [sys.executable, converter, str(Path(merged) / "model"), *options]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0 or not (folder / GGUF_FILE).is_file():
        said = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "nothing")
        raise UserError(
            f"{converter} does not take {checkpoint}: {said[:300]}",
            remedy="it knows Llama 3's tokenizer, not the byte tokenizer of model=llasa_nano; its packages are in "
            "requirements/export.txt",
        )
    replace(contract.card, quantisation=None).save(folder)


def export_codec(config: ExportConfig, folder: Path) -> dict[str, str | float]:
    """format=codec_onnx or codec_torch_export; what the record says of it."""
    from llasa.codec.export import export_decoder

    named = load_contract(config.checkpoint).card.codec if config.checkpoint is not None else None
    if named is None:
        codec = build(config.codec | {"device": "cpu"} if "device" in config.codec else config.codec)
    else:
        codec = build_codec(named, config.codec, "cpu")
        require_same_codec(named, codec.spec, str(config.checkpoint), "the codec")
    return {
        "codec": codec.spec.name,
        "largest_difference": export_decoder(codec, config.format.removeprefix("codec_"), folder),
    }
