"""Give the allocator's unused memory back while weights are loaded, where CPU and GPU share it.

After loading, quantized weights are repacked layer by layer, and each step leaves temporary blocks in PyTorch's caching allocator.
On a discrete GPU that costs nothing: the allocator empties its cache when the device runs out. On GB10 those blocks are
the host's memory. Nothing fails at the device, the kernel drops page cache and swaps instead, and the machine freezes
before PyTorch ever sees an error.

So after each layer, on an integrated GPU only, the cache is emptied when it holds at least 512 MiB and less than a fifth of
the system's memory is available. These are the conditions under which upstream's own release_device_memory_under_pressure
acts since 0.24.0, so that moving to a newer release changes nothing. Available memory is read from the system, because
cudaMemGetInfo counts page cache as used on these machines.

No setting of vLLM does this.
"""

from sparkwright.patching.model import Because, Contains, InsertAfter, InsertBefore, Patch, Variant

_LOADER = "vllm/model_executor/model_loader/utils.py"
_MEMORY = "vllm/utils/mem_utils.py"

_HELPER = '''\
def release_unused_device_memory(device: torch.device) -> None:
    """Empty the caching allocator when an integrated GPU and its host run short.

    On a device of its own memory the allocator does this when an allocation fails;
    where the host shares the memory it starts to swap before that happens.
    """
    if device.type != "cuda":
        return
    if not torch.cuda.get_device_properties(device).is_integrated:
        return
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    system = psutil.virtual_memory()
    if unused >= 512 * MiB_bytes and 5 * system.available <= system.total:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


'''

PATCH = Patch(
    title="loading a quantized model hoards temporary memory; with memory shared by CPU and GPU the host freezes",
    releases="<0.24",
    kind="python",
    category="temporary",
    reference=f"{_MEMORY}, release_device_memory_under_pressure (0.24.0: line 55)",
    remove_when="no release line below 0.24 is built",
    guarded_by="tests/patches/test_uma_release_while_loading.py",
    variants=(
        Variant(
            edits=(
                InsertBefore(path=_MEMORY, anchor="class DeviceMemoryProfiler:\n", text=_HELPER),
                InsertBefore(
                    path=_LOADER,
                    anchor="from vllm.utils.platform_utils import is_pin_memory_available\n",
                    text="from vllm.utils.mem_utils import release_unused_device_memory\n",
                ),
                InsertAfter(
                    path=_LOADER,
                    anchor="""\
            with device_loading_context(module, target_device):
                quant_method.process_weights_after_loading(module)
""",
                    text="            release_unused_device_memory(target_device)\n",
                ),
            ),
        ),
    ),
    upstream=(
        Because(
            signs=(
                Contains(
                    path=_LOADER, text="            release_device_memory_under_pressure(target_device)\n", count=1
                ),
                Contains(path=_MEMORY, text="def release_device_memory_under_pressure(device: torch.device)", count=1),
            ),
            why="release_device_memory_under_pressure runs after each layer",
            releases=">=0.24",
        ),
    ),
)
