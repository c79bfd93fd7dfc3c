"""Cross entropy + dice + IoU regression, with SAM's choice of the best token for vague prompts."""

from itertools import permutations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

IOU_WEIGHT = 0.5


def compare(
    logits: Float[Tensor, "b t h w"], targets: Float[Tensor, "b r h w"]
) -> tuple[Float[Tensor, "b t r"], Float[Tensor, "b t r"]]:
    """Loss of each mask as an answer for each region, and their IoU (no gradient).

    Cross entropy over the region's area, plus dice loss (Milletari et al. 2016). SAM's focal loss
    instead of cross entropy leaves logits so flat that SAM2 takes the masks for unstable. Targets
    are 0 to 1, with shares in pixels on an edge.
    """
    x, t = logits.flatten(2), targets.flatten(2).transpose(1, 2)
    p = x.sigmoid()
    area = t.sum(1).unsqueeze(1)
    entropy = (F.softplus(x).sum(2, keepdim=True) - x @ t) / (area + 0.001 * len(t[0]))
    dice = 1 - 2 * (p @ t) / (p.sum(2, keepdim=True) + area + 1)
    with torch.no_grad():
        inside, wanted = (x > 0).float(), (t > 0.5).float()
        both = inside @ wanted
        either = inside.sum(2, keepdim=True) + wanted.sum(1).unsqueeze(1) - both
        iou = both / either.clamp(min=1)
    return entropy + dice, iou


def total(
    logits: Float[Tensor, "b 4 h w"],
    scores: Float[Tensor, "b 4"],
    targets: Float[Tensor, "b 3 2*h 2*w"],
    wanted: Int[Tensor, " b"],
    meant: Float[Tensor, "b 3"],
) -> Float[Tensor, " b"]:
    """Loss of each prompt.

    Token 0 answers with the wanted region, at twice the resolution of the logits, as edges between
    their pixels matter. The other three share the regions that may be meant among them in whatever
    order costs least, as in SAM (Kirillov et al. 2023). Scores learn the IoU to be expected.
    """
    rows = torch.arange(len(wanted))
    larger = F.interpolate(logits[:, :1], scale_factor=2, mode="bilinear")
    single, single_iou = compare(larger, targets[rows, wanted][:, None])
    cost, iou = compare(logits[:, 1:], F.avg_pool2d(targets, 2))
    share = (meant > 0).float()
    share = share / share.sum(1, keepdim=True)
    orders = [
        (cost[:, list(order), list(range(3))] * share).sum(1) for order in permutations(range(3))
    ]
    several = torch.stack(orders, 1).amin(1)
    expected = torch.cat([single_iou[:, :, 0], (iou * meant[:, None]).sum(2)], dim=1)
    regression = (scores - expected).abs().mean(1)
    return single[:, 0, 0] + 0.5 * several + IOU_WEIGHT * regression
