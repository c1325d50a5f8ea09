"""Data: readers of files, tokenizers, batches whose order is a pure function of seed and position, sources by name."""

from ember_ml.data.dna import Bases, DnaConfig, DnaSource, chromosome
from ember_ml.data.documents import IGNORED, Documents
from ember_ml.data.fasta import read_fasta
from ember_ml.data.files import check_fingerprint
from ember_ml.data.inspect import inspect
from ember_ml.data.markov import interpolated_bits, markov_bits
from ember_ml.data.packing import Packed
from ember_ml.data.padding import Buckets, Padded
from ember_ml.data.permutation import Permutation
from ember_ml.data.prefetch import Prefetch
from ember_ml.data.real import real
from ember_ml.data.sources import alphabet, open_source
from ember_ml.data.windows import Windows, in_order

__all__ = ["IGNORED", "Bases", "Buckets", "DnaConfig", "DnaSource", "Documents", "Packed", "Padded", "Permutation", "Prefetch",
           "Windows", "alphabet", "check_fingerprint", "chromosome", "in_order", "inspect", "interpolated_bits", "markov_bits",
           "open_source", "read_fasta", "real"]
