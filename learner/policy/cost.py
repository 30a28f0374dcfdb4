"""What it costs to train on a sequence, by which sequences are shared out evenly.

Source: Kaplan et al. 2020, "Scaling Laws for Neural Language Models", section 2.1, with causal attention.
"""

from dataclasses import dataclass

from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """FLOP of the forward and the backward pass over a sequence of L tokens: linear·L + quadratic·L².

    A weight that multiplies takes part in one multiply-add a token in the forward pass, in one for the gradient of its
    input and, if it is trained, in one for its own: linear = 6 · trained + 4 · frozen weights. The input embedding is
    looked up, not multiplied; the head is counted for every token, though prompts do without.

    Token i of a sequence meets i keys, L²/2 pairs in all; a pair takes `width` multiply-adds for its score and as many
    for its value, where width = heads · head size, and the backward pass twice that: quadratic = 6 · layers · width.
    """

    linear: float  # FLOP a token
    quadratic: float  # FLOP a pair of tokens

    def of(self, length: int) -> float:
        """FLOP of a sequence of `length` tokens."""
        return self.linear * length + self.quadratic * length**2


def cost_of(network: PreTrainedModel) -> CostModel:
    """The costs of a decoder, from the shapes of its weights."""
    weights = {id(weight): weight for weight in network.parameters()}
    table = network.get_input_embeddings().weight
    if network.get_output_embeddings().weight is not table:
        del weights[id(table)]
    shape = network.config.get_text_config()
    head_size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    return CostModel(
        linear=float(sum((6 if weight.requires_grad else 4) * weight.numel() for weight in weights.values())),
        quadratic=6.0 * shape.num_hidden_layers * shape.num_attention_heads * head_size,
    )
