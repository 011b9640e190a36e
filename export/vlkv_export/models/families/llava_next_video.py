"""LLaVA-NeXT-Video: pictures as in LLaVA-NeXT; videos are not supported yet."""

from __future__ import annotations

from dataclasses import replace

from vlkv_export.models.families import llava_next

FAMILY = replace(llava_next.FAMILY, model_type="llava_next_video", image_token_id=32001)
