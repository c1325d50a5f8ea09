"""Data: FASTA, DNA, windows with an exact position, Markov baselines, sources by name."""

from ember_ml.data.dna import Bases, chromosome
from ember_ml.data.fasta import read_fasta
from ember_ml.data.markov import markov_bits
from ember_ml.data.sources import DnaConfig, DnaSource, alphabet, open_source
from ember_ml.data.windows import Windows, in_order

__all__ = ["Bases", "DnaConfig", "DnaSource", "Windows", "alphabet", "chromosome", "in_order", "markov_bits", "open_source",
           "read_fasta"]
