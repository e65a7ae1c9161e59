"""A Qwen2-VL as a reader of clips: frames and a text in, hidden states at chosen tokens out.

Positions: HPSv3 and VideoReward were trained with the positions 0, 1, 2, ... of their tokens alike on all three axes of
the rotary embedding, visual tokens included, and not with the positions in time, height and width that transformers
gives when it is asked for none. They are therefore given here, always.

A batch is padded on the right to its longest sequence, where nothing that is read sees it, and masked besides. Pixels
are made without torchvision: pictures by the library's PIL processor, the frames of videos by `video_patches`, which
follows the same formula.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoTokenizer, Qwen2VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from accord.backbones.components import refuse_partial
from accord.config.qwen_dir import EMBEDDING, QwenBase
from accord.config.reward_template import PLACE
from accord.errors import ModelError

FACTOR = 28
"""Pixels of a visual token's side: two patches of 14."""
PROMPT_TOKENS = 1024
"""A longer prompt is cut there."""
State = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """One sequence: its text with one placeholder for what is seen, and the patches of it."""

    text: str
    kind: Literal["image", "video"]
    patches: torch.Tensor
    """float32 [patches, 1176], in the order of the vision tower."""
    grid: tuple[int, int, int]
    """Patches in time, height and width."""

    @property
    def visual_tokens(self) -> int:
        """How many tokens stand for what is seen: two by two patches are one."""
        return self.grid[0] * self.grid[1] * self.grid[2] // 4


class QwenReader:
    """The backbone of a reward.

    Raises:
        ModelError: at construction, when the base's files or the weights are not what transformers can load.
    """

    def __init__(self, base: QwenBase, state: State, tokens: Sequence[str], dtype: torch.dtype, device: str) -> None:
        self._device = torch.device(device)
        try:
            config: Any = AutoConfig.from_pretrained(base.root, local_files_only=True, trust_remote_code=False)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                base.root, local_files_only=True, trust_remote_code=False
            )
            self._tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
            self.pixels = Qwen2VLImageProcessorPil.from_pretrained(base.root, local_files_only=True)
        except MemoryError:
            raise
        except Exception as error:  # a tokenizer's file may be wrong in ways that have no class of their own
            raise ModelError(f"{base.root}: transformers cannot load its config or tokenizer: {error}") from error
        self._chat = base.chat_template
        found: Any = self._tokenizer.convert_tokens_to_ids(list(tokens))
        self.token_ids: list[int] = found
        self._refuse_small(base, state)
        self._visual = {"image": int(config.image_token_id), "video": int(config.video_token_id)}
        config.text_config.vocab_size = state[EMBEDDING].shape[0]
        self.model = _load(base, config, state, dtype).to(self._device)

    def _refuse_small(self, base: QwenBase, state: State) -> None:
        rows = int(state[EMBEDDING].shape[0])
        if max(self.token_ids) >= rows:
            raise ModelError(
                f"{base.root / 'tokenizer.json'}: has {len(self._tokenizer)} tokens with those of the reward, the "
                f"weights {rows}; take the tokenizer that the checkpoint was trained with"
            )

    def ask(self, template: str, prompt: str, kind: Literal["image", "video"]) -> str:
        """The conversation's text: what is seen, then the template with the prompt in it, then the answer's beginning.

        A prompt cannot bring special tokens in: what would begin one is spaced out.
        """
        ids = self._tokenizer(prompt.replace("<|", "< |"), add_special_tokens=False)["input_ids"]
        if len(ids) > PROMPT_TOKENS:
            prompt = self._tokenizer.decode(ids[:PROMPT_TOKENS])
        words = template.replace(PLACE, prompt.replace("<|", "< |"))
        message = {"role": "user", "content": [{"type": kind, kind: ""}, {"type": "text", "text": words}]}
        text = self._tokenizer.apply_chat_template(
            [message], chat_template=self._chat, tokenize=False, add_generation_prompt=True
        )
        return str(text)

    def picture(self, frame_HWC: NDArray[np.uint8], text: str, pixels: int) -> Look:
        """One frame, resized by PIL to about `pixels`, its sides multiples of 28."""
        size = {"shortest_edge": pixels, "longest_edge": pixels}
        made = self.pixels(images=[np.array(frame_HWC)], size=size, return_tensors="pt")
        grid = made["image_grid_thw"][0].tolist()
        return Look(text, "image", made["pixel_values"].float(), (grid[0], grid[1], grid[2]))

    def video(self, frames_FHWC: NDArray[np.uint8], text: str, pixels: tuple[int, int]) -> Look:
        """An even number of frames, resized bicubically to between so many pixels, sides multiples of 28."""
        height, width = smart_resize(frames_FHWC.shape[1], frames_FHWC.shape[2], FACTOR, *pixels)
        frames_FCHW = torch.from_numpy(np.array(frames_FHWC)).permute(0, 3, 1, 2).float()
        sized = torch.nn.functional.interpolate(
            frames_FCHW, (height, width), mode="bicubic", antialias=True, align_corners=False
        )
        mean, spread = (torch.tensor(part).view(1, 3, 1, 1) for part in (self.pixels.image_mean, self.pixels.image_std))
        patches = video_patches((sized.round().clamp(0, 255) / 255 - mean) / spread)
        return Look(text, "video", patches, (len(frames_FHWC) // 2, height // 14, width // 14))

    @torch.no_grad()
    def read(self, looks: Sequence[Look]) -> torch.Tensor:
        """Hidden states float32 [B, K, hidden] at the K tokens of the reward, in the order that the text has them."""
        rows = [self._ids(look) for look in looks]
        length = max(len(row) for row in rows)
        pad = self._tokenizer.pad_token_id or 0
        ids_BL = torch.tensor([row + [pad] * (length - len(row)) for row in rows], device=self._device)
        mask_BL = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=self._device)
        at_BL = torch.isin(ids_BL, torch.tensor(self.token_ids, device=self._device)) & mask_BL.bool()
        hidden_BLD = self.model(
            input_ids=ids_BL, attention_mask=mask_BL, position_ids=plain_positions(ids_BL), use_cache=False,
            **self._seen(looks),
        ).last_hidden_state  # fmt: skip
        return hidden_BLD[at_BL].view(len(looks), len(self.token_ids), -1).float()

    def _ids(self, look: Look) -> list[int]:
        """Token ids with as many visual placeholders as there is to be seen."""
        ids: list[int] = self._tokenizer(look.text, add_special_tokens=False)["input_ids"]
        token = self._visual[look.kind]
        if ids.count(token) != 1 or [id_ for id_ in ids if id_ in self.token_ids] != self.token_ids:
            raise ValueError("the chat template does not give one visual placeholder and the tokens of the reward")
        place = ids.index(token)
        return [*ids[:place], *[token] * look.visual_tokens, *ids[place + 1 :]]

    def _seen(self, looks: Sequence[Look]) -> dict[str, torch.Tensor]:
        patches = torch.cat([look.patches for look in looks]).to(self._device)
        grid = torch.tensor([look.grid for look in looks], device=self._device)
        if looks[0].kind == "image":
            return {"pixel_values": patches, "image_grid_thw": grid}
        return {"pixel_values_videos": patches, "video_grid_thw": grid}


def video_patches(frames_FCHW: torch.Tensor) -> torch.Tensor:
    """Patches [F/2 * H/14 * W/14, 3 * 2 * 14 * 14] of normalised frames, as the vision tower takes them.

    Two frames make a patch. Patches go by time, then by visual token row by row, then by the four of a token; in each,
    numbers go by channel, frame, row and column.
    """
    frames, _, height, width = frames_FCHW.shape
    cut = frames_FCHW.reshape(frames // 2, 2, 3, height // 28, 2, 14, width // 28, 2, 14)
    return cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 3 * 2 * 14 * 14)


def plain_positions(ids_BL: torch.Tensor) -> torch.Tensor:
    """0, 1, 2, ... for every sequence and alike on the three axes of the rotary embedding [3, B, L].

    Whether padding stands before or after does not matter: attention sees differences of positions alone.
    """
    batch, length = ids_BL.shape
    return torch.arange(length, device=ids_BL.device).view(1, 1, length).expand(3, batch, length)


def in_chunks(looks: Sequence[Look], most: int) -> list[list[int]]:
    """Places of looks that go through the model together: at most `most` visual tokens, padding counted, or one look.

    Those of like size stand together, so that little is padded.
    """
    chunks: list[list[int]] = []
    for place in sorted(range(len(looks)), key=lambda index: (-looks[index].visual_tokens, index)):
        first = looks[chunks[-1][0]].visual_tokens if chunks else 0
        if chunks and first * (len(chunks[-1]) + 1) <= most:
            chunks[-1].append(place)
        else:
            chunks.append([place])
    return chunks


def _load(base: QwenBase, config: Any, state: State, dtype: torch.dtype) -> Any:
    """The backbone without a language head. Raises ModelError when a tensor is absent, unknown or of another shape."""
    loaded: Any = Qwen2VLModel.from_pretrained(
        None, config=config, state_dict=dict(state), dtype=dtype, output_loading_info=True, attn_implementation="sdpa"
    )
    model, report = loaded
    refuse_partial(base.root, report)
    return model.eval()
