"use strict";

// How numbers, sites and measures are written.

browser.format = (() => {
  const count = (n) => n.toLocaleString("en-GB");

  const value = (x) => {
    if (x === 0) return "0";
    const size = Math.abs(x);
    if (size >= 1000) return count(Math.round(x));
    return size >= 0.001 ? String(Number(x.toPrecision(3))) : x.toExponential(1);
  };

  const share = (x) => {
    if (x === 0) return "0 %";
    const percent = 100 * x;
    if (percent < 0.001) return "< 0.001 %";
    return `${Number(percent.toPrecision(percent >= 99.5 ? 3 : 2))} %`;
  };

  const figure = (x) => x.toFixed(2).replace("-0.00", "0.00");

  // A value of a measure; mutual information is mostly far below 1.
  const measure = (x, name) => (name === "mutual_information" ? x.toFixed(3) : figure(x));

  // "blocks.6.hook_resid_pre" -> its block and the rest, for tabs and columns.
  const parts = (site) => {
    const found = /^blocks\.(\d+)\.(.+)$/.exec(site);
    const kind = (found ? found[2] : site).replace("hook_", "");
    return { block: found ? found[1] : "", kind };
  };

  // Short names of sites: the block alone where all sites are of one kind.
  function shortNames(sites) {
    const found = sites.map(parts);
    const kinds = new Set(found.map((one) => one.kind));
    const alone = kinds.size === 1 && found.every((one) => one.block !== "");
    return found.map((one) => (alone ? one.block : [one.block, one.kind].filter(Boolean).join(".")));
  }

  const MEASURES = {
    pearson: ["Pearson", "Correlation of the two activations over all positions."],
    cosine: ["cosine", "Cosine of the two activations over all positions, uncentred."],
    jaccard: ["Jaccard", "Positions at which both are active, over those at which either is."],
    necessity: ["necessity", "How often the upstream latent is active where the downstream one is: P(up | down)."],
    sufficiency: ["sufficiency", "How often the downstream latent is active where the upstream one is: P(down | up)."],
    mutual_information: ["MI", "Mutual information of the two being active, in nats."],
    decoder_cosine: ["decoder", "Cosine of the two decoder rows."],
  };
  const measureName = (name) => (MEASURES[name] ?? [name])[0];
  const measureMeaning = (name) => (MEASURES[name] ?? ["", name])[1];

  return { count, value, share, figure, measure, parts, shortNames, measureName, measureMeaning };
})();
