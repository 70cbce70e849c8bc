"""GPUs for which a machine without a GPU can plan a training step: one GPU per architecture, the oldest first."""

from dataclasses import dataclass

KIB = 1 << 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """The properties of a GPU on which Inductor and Triton depend, named as in torch.cuda.get_device_properties.

    Sizes are in bytes. Threads, registers and shared memory follow from the compute capability (CUDA C++ Programming
    Guide, "Technical Specifications per Compute Capability"). The name, the number of multiprocessors and the memory
    depend on the product.
    """

    name: str
    major: int
    minor: int
    multi_processor_count: int
    max_threads_per_multi_processor: int
    shared_memory_per_multiprocessor: int
    shared_memory_per_block_optin: int
    """The largest amount of shared memory that a block can have."""
    total_memory: int
    shared_memory_per_block: int = 48 * KIB
    """The shared memory that a block has unless its kernel asks for more."""
    regs_per_multiprocessor: int = 65536
    max_threads_per_block: int = 1024
    warp_size: int = 32
    gcnArchName: str = ""  # meant for AMD's GPUs, but read by a torch that is built without CUDA

    @property
    def arch(self) -> int:
        """The architecture as a number: 90 for compute capability 9.0, which Triton calls sm_90."""
        return 10 * self.major + self.minor

    @property
    def has_bf16(self) -> bool:
        """Whether the card computes in bfloat16. On older cards torch emulates bfloat16, and Inductor refuses it."""
        return self.major >= 8


T4 = Card(
    name="Tesla T4",
    major=7,
    minor=5,
    multi_processor_count=40,
    max_threads_per_multi_processor=1024,
    shared_memory_per_multiprocessor=64 * KIB,
    shared_memory_per_block_optin=64 * KIB,
    total_memory=15_600_000_000,
)
A100 = Card(
    name="NVIDIA A100-SXM4-80GB",
    major=8,
    minor=0,
    multi_processor_count=108,
    max_threads_per_multi_processor=2048,
    shared_memory_per_multiprocessor=164 * KIB,
    shared_memory_per_block_optin=163 * KIB,
    total_memory=85_000_000_000,
)
RTX_3090 = Card(
    name="NVIDIA GeForce RTX 3090",
    major=8,
    minor=6,
    multi_processor_count=82,
    max_threads_per_multi_processor=1536,
    shared_memory_per_multiprocessor=100 * KIB,
    shared_memory_per_block_optin=99 * KIB,
    total_memory=25_000_000_000,
)
RTX_4090 = Card(
    name="NVIDIA GeForce RTX 4090",
    major=8,
    minor=9,
    multi_processor_count=128,
    max_threads_per_multi_processor=1536,
    shared_memory_per_multiprocessor=100 * KIB,
    shared_memory_per_block_optin=99 * KIB,
    total_memory=25_000_000_000,
)
H200 = Card(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    max_threads_per_multi_processor=2048,
    shared_memory_per_multiprocessor=228 * KIB,
    shared_memory_per_block_optin=227 * KIB,
    total_memory=150_000_000_000,
)
B200 = Card(
    name="NVIDIA B200",
    major=10,
    minor=0,
    multi_processor_count=148,
    max_threads_per_multi_processor=2048,
    shared_memory_per_multiprocessor=228 * KIB,
    shared_memory_per_block_optin=227 * KIB,
    total_memory=190_000_000_000,
)
RTX_5090 = Card(
    name="NVIDIA GeForce RTX 5090",
    major=12,
    minor=0,
    multi_processor_count=170,
    max_threads_per_multi_processor=1536,
    shared_memory_per_multiprocessor=100 * KIB,
    shared_memory_per_block_optin=99 * KIB,
    total_memory=33_000_000_000,
)
CARDS = {f"sm_{card.arch}": card for card in (T4, A100, RTX_3090, RTX_4090, H200, B200, RTX_5090)}
