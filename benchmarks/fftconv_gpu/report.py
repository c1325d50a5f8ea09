"""The results as text."""

from __future__ import annotations

import sys

from benchmarks.fftconv_gpu.measure import say


def say_errors(rows: list[dict]):
    """The largest error by dtype, and those beyond the contract."""
    bad, worst = [r for r in rows if not r["ok"]], {}
    for r in rows:
        kind = r.get("dtype", "") if r["what"] in "uvqy" else "filters"
        worst[kind] = max(worst.get(kind, 0.0), r["error"]) if r["error"] == r["error"] else float("nan")
    say(f"check: {len(rows)} errors measured, {len(bad)} beyond the contract; largest {worst}")
    for r in bad[:12]:
        say(f"    {r}")


def print_tables(out: dict):
    for r in out.get("plans", []):
        sys.stdout.write(f"{r['kind'][:3]} 2^{r['log_m']} points 2^{r['points']} rows {r['rows']} "
                         f"blocks {r['blocks']} keep {r['keep']}: {r['ms']:.3f} ms {r['ns_per_point'] * 1e3:.2f} ps/point\n")
    for r in (row for name in ("table_gated", "table_short", "table_long") for row in out.get(name, [])):
        share = r["useful_GBs"] / out["copy_GBs"] if "copy_GBs" in out else float("nan")
        sys.stdout.write(f"L={r['L']:<8}{r['dtype']:<9}{'gated' if r['gated'] else 'plain'} {'fwd+bwd' if r['step'] else 'fwd    '} "
                         f"ours {r['ours_ms']:8.3f} ms torch {r['torch_ms']:8.3f} ms ratio {r['ratio']:5.2f} copy share {share:4.0%} "
                         f"workspace {r['workspace_ours'] / 1e6:.0f} / {r.get('workspace_torch', float('nan')) / 1e6:.0f} MB\n")
    for r in out.get("special", []) + out.get("workspaces", []) + out.get("marks", []) + out.get("torch_compile", []):
        sys.stdout.write(", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in r.items()) + "\n")
