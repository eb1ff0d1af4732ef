"""The parts of the model of torch's CUDA caching allocator; `ipyvram.caching_allocator` is its face."""
