"""The only holder of the Docker socket: what a worker may ask of the engine, and nothing else."""
