"""InstantID for one request at a time, written plainly from NUMERICS.md with diffusers' modules: the oracle.

Slow on purpose: tokens are concatenated, attention is an explicit softmax, nothing is cached or shared.
"""

import json

import diffusers
import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionXLControlNetPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

FACE_TOKENS = 16
SCHEDULERS = {
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {}),
    "dpmpp_2m_karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "lcm": (diffusers.LCMScheduler, {}),
}
NO_GENERATOR = {"unipc", "heun"}
TRAINED = {
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type", "rescale_betas_zero_snr",
    "timestep_spacing", "steps_offset",
}  # fmt: skip


def right_scheduler(name, config):
    """diffusers' scheduler of a contract name; only how the checkpoint was trained is the configuration's to say."""
    kind, changes = SCHEDULERS[name]
    trained = {key: value for key, value in config.items() if key in TRAINED}
    if kind is diffusers.HeunDiscreteScheduler and trained.pop("rescale_betas_zero_snr", False):
        trained["trained_betas"] = zero_snr_betas(config)
    return kind(**trained, **changes)


def zero_snr_betas(config):
    """Lin et al. 2024 (arXiv 2305.08891), algorithm 1; the last signal is diffusers' 2**-24 in place of 0."""
    kept = np.sqrt(np.cumprod(1 - scaled_linear_betas(config)))
    kept = ((kept - kept[-1]) * kept[0] / (kept[0] - kept[-1])) ** 2
    kept[-1] = 2**-24
    return [1 - kept[0], *(1 - kept[1:] / kept[:-1])]


def scaled_linear_betas(config):
    return np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, config["num_train_timesteps"]) ** 2


def softmax_attention(q, k, v):
    return ((q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5).softmax(-1) @ v


class PlainAdapterAttention:
    """`out = text + scale * face`; the last 16 tokens of encoder_hidden_states are the face."""

    def __init__(self, to_k_ip, to_v_ip):
        self.to_k_ip, self.to_v_ip = to_k_ip, to_v_ip
        self.scale = 1.0

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        text, face = encoder_hidden_states[:, :-FACE_TOKENS], encoder_hidden_states[:, -FACE_TOKENS:]

        def heads(x):
            return x.reshape(x.shape[0], x.shape[1], attn.heads, -1).permute(0, 2, 1, 3)

        query = heads(attn.to_q(hidden_states))
        out = softmax_attention(query, heads(attn.to_k(text)), heads(attn.to_v(text)))
        own = softmax_attention(query, heads(F.linear(face, self.to_k_ip)), heads(F.linear(face, self.to_v_ip)))
        out = out + self.scale * own
        return attn.to_out[0](out.permute(0, 2, 1, 3).flatten(2))


def plain_resampler(w, embedding, dtype=torch.float64, dim_head=64):
    """The Resampler of NUMERICS.md, head by head."""
    w = {name: tensor.to(dtype) for name, tensor in w.items()}
    norm = lambda x, name: F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])  # noqa: E731
    x = (embedding.to(dtype) @ w["proj_in.weight"].T + w["proj_in.bias"])[None]
    latents = w["latents"][0]
    depth = len({name.split(".")[1] for name in w if name.startswith("layers.")})
    for i in range(depth):
        a, f = f"layers.{i}.0", f"layers.{i}.1"
        xn, ln = norm(x, f"{a}.norm1"), norm(latents, f"{a}.norm2")
        q = ln @ w[f"{a}.to_q.weight"].T
        kv = torch.cat([xn, ln]) @ w[f"{a}.to_kv.weight"].T
        k, v = kv[:, : q.shape[1]], kv[:, q.shape[1] :]
        out = torch.zeros_like(q)
        for h in range(0, q.shape[1], dim_head):
            s = slice(h, h + dim_head)
            weight = (q[:, s] * dim_head**-0.25) @ (k[:, s] * dim_head**-0.25).T
            out[:, s] = weight.softmax(-1) @ v[:, s]
        latents = latents + out @ w[f"{a}.to_out.weight"].T
        hidden = F.gelu(norm(latents, f"{f}.0") @ w[f"{f}.1.weight"].T)
        latents = latents + hidden @ w[f"{f}.3.weight"].T
    return norm(latents @ w["proj_out.weight"].T + w["proj_out.bias"], "norm_out")


class Reference:
    def __init__(self, weights):
        sdxl = weights / "sdxl"
        self.unet = UNet2DConditionModel.from_pretrained(sdxl / "unet")
        self.controlnet = ControlNetModel.from_pretrained(weights / "identitynet")
        self.vae = diffusers.AutoencoderKL.from_pretrained(sdxl / "vae")
        self.config = json.loads((sdxl / "scheduler" / "scheduler_config.json").read_text())
        self.pipeline = StableDiffusionXLControlNetPipeline(
            vae=self.vae,
            text_encoder=CLIPTextModel.from_pretrained(sdxl / "text_encoder"),
            text_encoder_2=CLIPTextModelWithProjection.from_pretrained(sdxl / "text_encoder_2"),
            tokenizer=CLIPTokenizer.from_pretrained(sdxl / "tokenizer"),
            tokenizer_2=CLIPTokenizer.from_pretrained(sdxl / "tokenizer_2"),
            unet=UNet2DConditionModel.from_pretrained(sdxl / "unet"),
            controlnet=self.controlnet,
            scheduler=diffusers.EulerDiscreteScheduler.from_config(self.config),
            add_watermarker=False,
        )
        self.pipeline.set_progress_bar_config(disable=True)
        adapter = {n: t.float() for n, t in load_file(weights / "adapter" / "ip-adapter.safetensors").items()}
        self.image_proj = {n.removeprefix("image_proj."): t for n, t in adapter.items() if n.startswith("image_proj.")}
        self._install(adapter)

    def _install(self, adapter):
        processors, index = dict(self.unet.attn_processors), 1
        for name in processors:
            if name.endswith("attn2.processor"):
                weights = [adapter[f"ip_adapter.{index}.to_{kind}_ip.weight"] for kind in "kv"]
                processors[name] = PlainAdapterAttention(*weights)
                index += 2
        self.unet.set_attn_processor(processors)

    def scheduler(self, name):
        return right_scheduler(name, self.config)

    @torch.no_grad()
    def network(self, request, embedding, landmark_picture):
        """Gives `predict(latents, timestep, keep)`: guided, for scaled latents; IdentityNet acts times `keep`."""
        guidance = request.guidance_scale > 1
        for processor in self.unet.attn_processors.values():
            if isinstance(processor, PlainAdapterAttention):
                processor.scale = request.ip_adapter_scale
        embeds, negative, pooled, negative_pooled = self.pipeline.encode_prompt(
            request.prompt, negative_prompt=request.negative_prompt, do_classifier_free_guidance=guidance
        )
        face = plain_resampler(self.image_proj, torch.from_numpy(embedding), torch.float32)[None]
        if guidance:
            zero = plain_resampler(self.image_proj, torch.zeros(len(embedding)), torch.float32)[None]
            embeds, pooled = torch.cat([negative, embeds]), torch.cat([negative_pooled, pooled])
            face = torch.cat([zero, face])
        size = (request.height, request.width)
        ids = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32).repeat(len(embeds), 1)
        added = {"text_embeds": pooled, "time_ids": ids}
        picture = torch.from_numpy(landmark_picture).permute(2, 0, 1)[None].float() / 255

        @torch.no_grad()
        def predict(latents, timestep, keep=1.0):
            inputs = torch.cat([latents] * len(embeds))
            down, middle = self.controlnet(
                inputs,
                timestep,
                encoder_hidden_states=face,
                controlnet_cond=picture.repeat(len(embeds), 1, 1, 1),
                conditioning_scale=request.controlnet_conditioning_scale * keep,
                added_cond_kwargs=added,
                return_dict=False,
            )
            noise = self.unet(
                inputs,
                timestep,
                encoder_hidden_states=torch.cat([embeds, face], dim=1),
                added_cond_kwargs=added,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
                return_dict=False,
            )[0]
            if not guidance:
                return noise
            u, c = noise.chunk(2)
            return u + request.guidance_scale * (c - u)

        return predict

    def latents(self, request, embedding, landmark_picture, seed):
        """Final latents [1, c, h, w] of one picture of one request, alone."""
        predict = self.network(request, embedding, landmark_picture)
        generator = torch.Generator().manual_seed(seed)
        scheduler = self.scheduler(request.scheduler)
        scheduler.set_timesteps(request.num_inference_steps)
        shape = (1, self.unet.config.in_channels, request.height // 8, request.width // 8)
        latents = torch.randn(shape, generator=generator) * scheduler.init_noise_sigma
        n = len(scheduler.timesteps)
        for i, t in enumerate(scheduler.timesteps):
            outside = i / n < request.control_guidance_start or (i + 1) / n > request.control_guidance_end
            noise = predict(scheduler.scale_model_input(latents, t), t, 1.0 - float(outside))
            options = {} if request.scheduler in NO_GENERATOR else {"generator": generator}
            latents = scheduler.step(noise, t, latents, return_dict=False, **options)[0]
        return latents

    @torch.no_grad()
    def picture(self, latents):
        """One picture, HWC RGB uint8."""
        decoded = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return np.asarray(self.pipeline.image_processor.postprocess(decoded, output_type="pil")[0])
