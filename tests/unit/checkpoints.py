"""What the tests of checkpoints and LoRA files share: painting with a checkpoint, and SDXL's full-sized UNet."""

import json

import torch

from instantid.models.sdxl import SdxlModel

from .diffusing import make_job, run

CPU = torch.device("cpu")


def paint(weights, checkpoint, **options):
    model = SdxlModel.load(weights, CPU, torch.float32, checkpoint=checkpoint)
    (latents,) = run(model, make_job(num_inference_steps=3, seed=3, **options))
    return latents, model.decode.picture(latents[0]).numpy()


EMPTY = torch.tensor([])


def rewrite(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


FULL_UNET = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
    "sample_size": 128,
}
