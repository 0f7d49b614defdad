//! From a graph and a checkpoint to text: checkpoints, cache, threads, sampling
