"""From a long context to the few vectors that a language model reads in its place.

    encoder        context tokens to states, by a pretrained base
    architectures  states to slots: what is under test
    connector      slots to what the decoder takes for embeddings
    budget         how many slots a context gets
    soft_tokens, key_values    the two forms of a compressed context
    context        the compressed context itself, and several joined
    compressed_lm  all of them in front of a decoder
    parameters     a model's parameters: split, counted, exported, imported

Shapes are suffixes of names, one letter an axis. Beside the decoder's letters, which
`gistjax.model.llama` lists, there are:

    A answer tokens        M slots                  X positions of a compressed context
    C context tokens       P tokens of the prompt before the context
    E contexts of a batch  Q questions on each (B = E·Q)
    S question + answer    Y tokens that a teacher proposes
    Z taps of a convolution
"""

EXPORTED = "compressor.safetensors"
"""The file of a run directory that holds the trained parameters, for sharing."""
