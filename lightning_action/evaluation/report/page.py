"""Parts of a self-contained page: no scripts, nothing from the network; light and dark, narrow and wide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Literal

STYLE = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#1b2330;--soft:#5a6675;--line:#dfe4ea;--track:#eef1f5;
--c0:#1f63d6;--c1:#d9730d;--c2:#7a4fbf;--c3:#0b8a74;--c4:#b8326b;--reference:#7c8794;
--good:#0b7a4b;--good-bg:#dff5ea;--fair:#8a5a00;--fair-bg:#fdf0d2;--bad:#b3261e;--bad-bg:#fde3e1;--none:#4b5563;
--none-bg:#e7eaee}
@media (prefers-color-scheme:dark){:root{--page:#11151b;--card:#1a2029;--ink:#e8ecf1;--soft:#a2adba;--line:#303947;
--track:#232b36;--c0:#74a7ff;--c1:#ffab5c;--c2:#c3a0ff;--c3:#4fd1b8;--c4:#ff8fbd;--reference:#8b97a5;
--good:#6fe0ab;--good-bg:#123527;--fair:#ffcf70;--fair-bg:#3a2c0d;--bad:#ff9d95;--bad-bg:#451c19;--none:#c3cbd5;
--none-bg:#2c3541}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
main{max-width:1440px;margin:0 auto;padding:24px clamp(14px,3vw,40px) 64px}
h1{font-size:1.6rem;line-height:1.2;margin:0 0 14px}
h2{font-size:1.35rem;line-height:1.25;margin:44px 0 4px}
h3{font-size:1rem;margin:0 0 8px}
p{margin:0 0 12px;max-width:78ch}
.lead,figcaption,small,.soft{color:var(--soft)}
small{font-size:.82rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:18px 20px;min-width:0}
.verdict .label{display:inline-block;padding:3px 16px;border-radius:999px;font-size:1.7rem;font-weight:700}
.verdict ul{margin:14px 0 0;padding-left:20px;font-size:1.06rem}
.good{color:var(--good);background:var(--good-bg)}.fair{color:var(--fair);background:var(--fair-bg)}
.bad{color:var(--bad);background:var(--bad-bg)}.none{color:var(--none);background:var(--none-bg)}
.chip{display:inline-block;border-radius:999px;padding:0 9px;font-size:.78rem;line-height:1.6;white-space:nowrap}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-top:16px}
.tile{padding:12px 16px}.tile b,.tile small{display:block}.tile b{font-size:1.6rem;line-height:1.3}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:16px;margin-top:14px}
.wide{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,560px),1fr));gap:16px;margin-top:14px}
figure{margin:0}
table{border-collapse:collapse;width:100%}
.tabled{margin-top:14px;padding:6px 20px;overflow-x:auto}
th,td{padding:9px 10px;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
tr:last-child>*{border-bottom:0}
th:first-child,td:first-child{text-align:left;padding-left:0;font-weight:600}
thead th{color:var(--soft);font-size:.82rem;font-weight:600;vertical-align:bottom}
tbody th small{display:block;font-weight:400;max-width:64ch}th .chip{font-weight:400;margin-left:8px}
td small{display:block;white-space:nowrap}
.own{font-weight:700}
details{margin-top:12px}summary{cursor:pointer;color:var(--soft)}
pre{margin:10px 0 0;font:.8rem/1.5 ui-monospace,SFMono-Regular,Menlo,monospace;white-space:pre-wrap}
dl{display:grid;grid-template-columns:max-content 1fr;gap:6px 20px;margin:0}
dt{color:var(--soft)}dd{margin:0}
.chart{display:block;width:100%;height:auto}.chart text{font-size:12.5px;fill:var(--soft)}
.chart .grid{stroke:var(--line);stroke-width:1;fill:none}
[class^=curve-] path,.key path{fill:none;stroke:currentColor;stroke-width:2.4;stroke-linejoin:round}
[class^=curve-] circle{fill:currentColor}
.curve-0{color:var(--c0)}.curve-1{color:var(--c1)}.curve-2{color:var(--c2)}.curve-3{color:var(--c3)}
.curve-4{color:var(--c4)}
.curve-1 path{stroke-dasharray:7 5}.curve-2 path{stroke-dasharray:2 5}.curve-3 path{stroke-dasharray:9 4 2 4}
.chart .reference,.key.reference path{stroke:var(--reference);stroke-width:1.5;stroke-dasharray:3 4;fill:none}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 18px;margin:8px 0 0;padding:0;font-size:.88rem}
.legend .key{width:28px;height:8px;margin-right:7px;vertical-align:middle}
.film{overflow-x:auto;padding-bottom:4px}.film>div{min-width:520px}
.row{display:grid;grid-template-columns:128px 1fr;gap:4px 12px;align-items:center;margin-bottom:8px}
.row span{font-size:.86rem;color:var(--soft);line-height:1.3;position:sticky;left:0}
.row img{display:block;width:100%;border-radius:4px;image-rendering:pixelated}
.times{display:grid;font-size:.76rem;color:var(--soft);text-align:center;white-space:nowrap}.times i{font-style:normal}
@media (max-width:640px){
.chart text{font-size:15px}h2{margin-top:34px}.card{padding:14px}.tabled{padding:2px 14px}
.row{grid-template-columns:1fr}.row span{justify-self:start}.row .nothing{display:none}
table.stacks,.stacks tbody,.stacks tr,.stacks th,.stacks td{display:block;width:100%}
.stacks thead{display:none}.stacks tr{padding:10px 0;border-bottom:1px solid var(--line)}
.stacks tr:last-child{border-bottom:0}
.stacks th,.stacks td{border:0;padding:2px 0;text-align:left}
.stacks td{display:flex;justify-content:space-between;gap:14px;text-align:right}
.stacks td::before{content:attr(data-label);color:var(--soft);font-weight:400;text-align:left}
.stacks td:empty{display:none}
dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:10px}
}
"""

Rows = Iterable[Sequence[str]]


def document(title: str, body: str) -> str:
    """Put a body, HTML, into a page with a title, text, that may load nothing from anywhere."""
    style = STYLE.replace("\n", "")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>{body}</main></body></html>\n"
    )


def section(title: str, lead: str, *parts: str) -> str:
    """Put parts, HTML, under a title and a sentence, both text; an empty text where no part has anything."""
    if not any(parts):
        return ""
    return f'<section><h2>{escape(title)}</h2><p class="lead">{escape(lead)}</p>{"".join(parts)}</section>'


def table(header: Sequence[str], rows: Rows) -> str:
    """Draw rows of cells of HTML under a header of text; on a narrow screen each row is a block of its own."""
    body = "".join(
        f"<tr><th scope=row>{first}</th>"
        + "".join(f'<td data-label="{escape(name)}">{cell}</td>' for name, cell in zip(header[1:], rest, strict=True))
        + "</tr>"
        for first, *rest in rows
    )
    if not body:
        return ""
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in header)
    whole = f'<table class="stacks"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="card tabled">{whole}</div>'


def card(content: str) -> str:
    """Put content, HTML, on a card; nothing where there is none."""
    return f'<div class="card">{content}</div>' if content else ""


def side_by_side(parts: Sequence[str], kind: Literal["wide", "charts"] = "wide") -> str:
    """Put parts, HTML, beside each other as far as they fit; nothing where no part has anything."""
    return f'<div class="{kind}">{"".join(parts)}</div>' if any(parts) else ""


def folded(summary: str, content: str) -> str:
    """Hide content, HTML, behind a line of text; nothing where there is none."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>" if content else ""


def chip(text: str, kind: str = "none") -> str:
    """Draw a word in a coloured pill: `good`, `fair`, `bad` or `none`."""
    return f'<span class="chip {kind}">{escape(text)}</span>'


def facts(values: Mapping[str, str]) -> str:
    """List facts, both names and values as text; those that are empty are left out, and nothing where all are."""
    told = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in values.items() if value)
    return f"<dl>{told}</dl>" if told else ""


def verdict_with_reasons(verdict: Mapping[str, Any]) -> str:
    """Draw the label of a verdict, as a report has it, in its colour, and list the reasons."""
    label = verdict.get("label", "no verdict")
    kind = {"obeys": "good", "partly": "fair", "ignores": "bad"}.get(label, "none")
    reasons = "".join(f"<li>{escape(str(reason))}</li>" for reason in verdict.get("reasons", ()))
    return f'<span class="label {kind}">{escape(label)}</span><ul>{reasons}</ul>'
