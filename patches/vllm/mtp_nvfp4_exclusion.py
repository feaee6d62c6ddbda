"""Leave the MTP layers in 16 bits that an NVFP4 checkpoint left in 16 bits.

Published NVFP4 checkpoints keep the whole multi-token-prediction (MTP) branch in BF16 and say so in the exclude list of their
quantization config. vLLM decides per layer, by comparing the layer's name with that list, and misses some:

* Qwen3-Next (up to 0.24) and Qwen3.5 (0.17 to 0.19): the list names `mtp.layers.0*` and forgets `mtp.fc`, the
  projection in front of those layers. It is built as NVFP4, with half the input width, and loading its BF16 weight
  fails with an AssertionError in load_column_parallel_weight.
* Step-3.5/3.7 (0.23 to 0.26): the list names the MTP layers, but the head is built without its name, so no entry can match.
  Since 0.23 ModelOpt configs quantize heads too, and loading fails with "The size of tensor a (2048) must match the size of
  tensor b (4096)". Before 0.23 a head was never quantized.

The mend for Step passes the name on, as upstream does since 0.27.0. For `mtp.fc` it asks the checkpoint: when every MTP layer is
excluded, so is the projection that feeds them. Upstream (Qwen3.5 in 0.20.0, Qwen3-Next in 0.25.0) forces `mtp.fc` to 16 bits for
every NVFP4 checkpoint; this is narrower, so a checkpoint that does quantize its MTP branch still loads.

Not touched, because no published checkpoint showed the fault: the heads of EXAONE (`mtp.fc`), Hunyuan V3 (no name, as
Step had), LongCat (`eh_proj` without its layer's name).
"""

from sparkwright.patching.model import Because, Contains, NoFile, Patch, Replace, Variant

_MODELS = "vllm/model_executor/models"
_QWEN3_NEXT = f"{_MODELS}/qwen3_next_mtp.py"
_QWEN3_5 = f"{_MODELS}/qwen3_5_mtp.py"
_STEP = f"{_MODELS}/step3p5_mtp.py"

_FC = """\
        self.fc = ColumnParallelLinear(
            self.config.hidden_size * 2,
            self.config.hidden_size,
            gather_output=True,
            bias=False,
            return_bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.fc",
        )
"""
_FC_AS_ITS_LAYERS = """\
        # ModelOpt exclude lists name the MTP layers and forget fc in front of them:
        # fc is in 16 bits when all of the layers are.
        is_excluded = getattr(quant_config, "is_layer_excluded", None)
        fc_excluded = is_excluded is not None and all(
            is_excluded(f"{prefix}.layers.{idx}") for idx in range(self.num_mtp_layers)
        )
        self.fc = ColumnParallelLinear(
            self.config.hidden_size * 2,
            self.config.hidden_size,
            gather_output=True,
            bias=False,
            return_bias=False,
            quant_config=None if fc_excluded else quant_config,
            prefix=f"{prefix}.fc",
        )
"""
_FC_UPSTREAM = """\
        fc_quant = (
            None
            if (quant_config and quant_config.get_name() == "modelopt_fp4")
            else quant_config
        )
        self.fc = ColumnParallelLinear(
"""

_STEP_HEAD = (
    Replace(
        path=_STEP,
        old="""\
        quant_config: QuantizationConfig | None = None,
    ) -> None:
        super().__init__()
        self.norm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = ParallelLMHead(
            config.vocab_size, config.hidden_size, quant_config=quant_config
        )
""",
        new="""\
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.norm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = ParallelLMHead(
            config.vocab_size,
            config.hidden_size,
            quant_config=quant_config,
            prefix=f"{prefix}.head",
        )
""",
    ),
    Replace(
        path=_STEP,
        old="        self.shared_head = SharedHead(config=config, quant_config=quant_config)\n",
        new="""\
        self.shared_head = SharedHead(
            config=config, quant_config=quant_config, prefix=f"{prefix}.shared_head"
        )
""",
    ),
)
_STEP_UPSTREAM = """\
        self.shared_head = SharedHead(
            config=config, quant_config=quant_config, prefix=f"{prefix}.shared_head"
        )
"""


def _fc(path: str) -> Replace:
    return Replace(path=path, old=_FC, new=_FC_AS_ITS_LAYERS)


_QWEN3_5_MENDED = Contains(path=_QWEN3_5, text=_FC_UPSTREAM, count=1)
_QWEN3_NEXT_MENDED = Contains(path=_QWEN3_NEXT, text=_FC_UPSTREAM, count=1)

PATCH = Patch(
    title="MTP layers that a checkpoint keeps in BF16 are built as NVFP4: speculative decoding with MTP fails at load",
    releases="<0.27",
    kind="python",
    category="temporary",
    reference="vLLM pull requests 38832 (Qwen3.5), 46316 (Qwen3-Next) and 48883 (Step-3.5)",
    remove_when="no release line below 0.27 is built",
    guarded_by="tests/patches/test_mtp_nvfp4_exclusion.py",
    variants=(
        Variant(releases="<0.17", edits=(_fc(_QWEN3_NEXT),), requires=(NoFile(path=_QWEN3_5),)),
        Variant(releases=">=0.17,<0.20", edits=(_fc(_QWEN3_NEXT), _fc(_QWEN3_5))),
        Variant(releases=">=0.20,<0.23", edits=(_fc(_QWEN3_NEXT),), requires=(_QWEN3_5_MENDED,)),
        Variant(releases=">=0.23,<0.25", edits=(_fc(_QWEN3_NEXT), *_STEP_HEAD), requires=(_QWEN3_5_MENDED,)),
        Variant(releases=">=0.25", edits=_STEP_HEAD, requires=(_QWEN3_5_MENDED, _QWEN3_NEXT_MENDED)),
    ),
    upstream=(
        Because(
            signs=(
                _QWEN3_5_MENDED,
                _QWEN3_NEXT_MENDED,
                Contains(path=_STEP, text=_STEP_UPSTREAM, count=1),
                Contains(path=_STEP, text='            prefix=f"{prefix}.head",\n', count=1),
            ),
            why="mtp.fc is in 16 bits for every NVFP4 checkpoint, and Step's head knows its name",
            releases=">=0.27",
        ),
    ),
)
