// The arithmetic of the page, from log p_η (K) and log p_θ (K × T) of an answer, and how numbers are written.

/** log Σ exp, nats. */
export function logSumExp(values) {
  const most = Math.max(...values);
  if (most === -Infinity) return -Infinity;
  return most + Math.log(values.reduce((sum, value) => sum + Math.exp(value - most), 0));
}

export const sum = (values) => values.reduce((total, value) => total + value, 0);

/** JSON has no −∞ and writes null. */
export const logarithm = (value) => (value === null ? -Infinity : value);

/** The values of z: for each row of log p_η the places of the sources that were read together; none is "no passage". */
export function valuesOf(answer) {
  if (answer.sets !== undefined) return answer.sets;
  const singles = answer.sources.map((_, z) => [z]);
  return answer.no_passage === undefined ? singles : [...singles, []];
}

/**
 * log p(y|x), nats, had only these passages been retrieved: the prior is renormalised over what can still be read, and
 * that of a set, p_η(z_i|x) p_η(z_j|x) e^γ, is made anew of its passages' own.
 *
 * RAG-Sequence: log Σ_z p_η(z|x) Π_i p_θ(y_i|x,z,y_<i);  RAG-Token: Σ_i log Σ_z p_η(z|x) p_θ(y_i|x,z,y_<i).
 */
export function logLikelihood(answer, passages) {
  const values = valuesOf(answer);
  const there = new Set(passages);
  const kept = values.map((_, k) => k).filter((k) => values[k].every((z) => there.has(z)));
  const singles = (rows) => rows.filter((k) => values[k].length === 1).map((k) => logarithm(answer.log_p_eta[k]));
  const left = answer.sets === undefined ? 0 : logSumExp(singles(kept)) - logSumExp(singles(values.map((_, k) => k)));
  const logPEta = kept.map((k) => logarithm(answer.log_p_eta[k]) - (values[k].length > 1 ? left : 0));
  const logPTheta = kept.map((z) => answer.log_p_theta[z].map(logarithm));
  const norm = logSumExp(logPEta);
  if (answer.variant === "sequence") {
    return logSumExp(logPTheta.map((ofPassage, j) => logPEta[j] + sum(ofPassage))) - norm;
  }
  const numTokens = answer.log_p_theta[0].length;
  let total = 0;
  for (let i = 0; i < numTokens; i += 1) {
    total += logSumExp(logPTheta.map((ofPassage, j) => logPEta[j] + ofPassage[i])) - norm;
  }
  return total;
}

/**
 * What is due to each passage, had only these been retrieved: of the whole answer, and token by token. Null where a set
 * of passages, or none, shares in it.
 *
 * RAG-Sequence: p(z|x,y≤i) ∝ p_η(z|x) Π_{j≤i} p_θ(y_j|x,z,y<j);  RAG-Token: p(z|x,y_i) ∝ p_η(z|x) p_θ(y_i|x,z,y<i), of
 * the answer the mean over its tokens.
 */
export function posteriorsOf(answer, passages) {
  if (answer.sets !== undefined || answer.no_passage !== undefined) return null;
  const logPTheta = answer.log_p_theta.map((row) => row.map(logarithm));
  const at = answer.sources.map((_, z) => (passages.includes(z) ? logarithm(answer.log_p_eta[z]) : -Infinity));
  const soFar = [...at];
  const rows = logPTheta[0].map((_, i) => {
    soFar.forEach((_, z) => { soFar[z] += logPTheta[z][i]; });
    return normalised(answer.variant === "sequence" ? soFar : at.map((value, z) => value + logPTheta[z][i]));
  });
  const mean = at.map((_, z) => sum(rows.map((row) => row[z])) / rows.length);
  const tokens = answer.tokens.map((token, i) => ({ ...token, posterior: rows[i] }));
  const log_prob = logLikelihood(answer, passages);
  return { posteriors: answer.variant === "sequence" ? rows.at(-1) : mean, tokens, log_prob };
}

function normalised(logs) {
  const norm = logSumExp(logs);
  return logs.map((value) => (norm === -Infinity ? 0 : Math.exp(value - norm)));
}

/** A share: 64.5 %. */
export function percent(p) {
  if (p > 0.9995) return p === 1 ? "100 %" : ">99.9 %";
  if (p < 0.0005) return p === 0 ? "0 %" : "<0.1 %";
  return `${(100 * p).toFixed(1)} %`;
}

/** A logarithm: −1.33. */
export function nats(value) {
  if (value === -Infinity) return "−∞";
  return signed(value).replace("+", "");
}

/** A difference of logarithms: +2.70. */
export function signed(value) {
  if (!Number.isFinite(value)) return value < 0 ? "−∞" : "+∞";
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
}

/** A probability that may be very small: 0.0123, 4.56·10⁻⁹; from its logarithm, so that none is too small. */
export function fromLog(value) {
  if (value === -Infinity) return "0";
  if (value > Math.log(0.001)) return Math.exp(value).toPrecision(3);
  let exponent = Math.floor(value / Math.LN10);
  let digits = Math.exp(value - exponent * Math.LN10).toFixed(2);
  if (digits === "10.00") [digits, exponent] = ["1.00", exponent + 1];
  return `${digits}·10${String(exponent).replace(/[-\d]/g, (each) => SUPERSCRIPT[each])}`;
}

/** A probability from its logarithm: a share where that says something. */
export const probability = (logProb) => (logProb > Math.log(0.001) ? percent(Math.exp(logProb)) : fromLog(logProb));

/** A probability as it is said in a sentence: 64.5 %, less than 0.1 %. */
export const inWords = (logProb) => percent(Math.exp(logProb)).replace("<", "less than ").replace(">", "more than ");

/** How long something took: 1,234 ms. */
export const milliseconds = (value) => `${Math.round(value).toLocaleString("en")} ms`;

const SUPERSCRIPT = Object.fromEntries([..."-0123456789"].map((each, i) => [each, "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"[i]]));

/** How many times more or less probable: 11 times less probable. */
export function times(difference) {
  if (Math.abs(difference) < 0.005) return "as probable as before";
  return `${factor(Math.abs(difference))} times ${difference < 0 ? "less" : "more"} probable`;
}

function factor(logFactor) {
  if (!Number.isFinite(logFactor)) return "infinitely many";
  if (logFactor < Math.log(100)) return Math.exp(logFactor).toPrecision(3);
  if (logFactor < Math.log(1e6)) return Number(Math.exp(logFactor).toPrecision(3)).toLocaleString("en");
  const exponent = Math.floor(logFactor / Math.LN10);
  const digits = Math.exp(logFactor - exponent * Math.LN10).toFixed(1);
  return `${digits}·10${String(exponent).replace(/\d/g, (each) => SUPERSCRIPT[each])}`;
}
