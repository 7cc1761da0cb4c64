"""The feature browser: a static site about the latents of SAEs, made from saved results.

    python -m sae_kit.viz.browser RESULT [RESULT ...] --out site

`build` makes a folder that opens from the disk or from any web host: no server, no network, no
build step. `page/` is what a reader's browser runs, plain scripts and styles; the rest of this
package writes what they show.

Data lies in shards that the page loads as it needs them. A page opened from a folder may not fetch
files, but it may load scripts, so a shard is a script: one call with the name of the shard and its
JSON, compressed and in base64. Whatever a token holds, no shard and no page has it as markup.
"""
