// Aliases: what callers may write, and what the engine reads. Camel case wins over its snake form,
// undefined never overrides, unknown keys survive (the schemas refuse them), anything that is no
// object becomes undefined.
import { DETOKENIZE, EMBED, GENERATOR, LOAD, TOKENIZE } from './aliases.js';
import { isObject } from './objects.js';

type Fields = Record<string, unknown>;

const GENERATOR_NAMES: ReadonlySet<string> = new Set([
  ...Object.keys(GENERATOR), ...Object.values(GENERATOR), 'prompt', 'messages', 'temperature',
  'seed', 'logprobs', 'structured', 'multimodal', 'hints',
]);

function rename(input: unknown, aliases: Record<string, string>): Fields | undefined {
  if (!isObject(input)) return undefined;
  const output = new Map<string, unknown>();
  for (const [key, value] of Object.entries(input)) {
    if (value !== undefined && !Object.hasOwn(aliases, key)) output.set(key, value);
  }
  for (const [alias, name] of Object.entries(aliases)) {
    const value = Object.hasOwn(input, alias) ? input[alias] : undefined;
    if (value !== undefined && !output.has(name)) output.set(name, value);
  }
  return Object.fromEntries(output); // where `__proto__` is a key like any other
}

export const normalizeGeneratorParams = (input: unknown): Fields | undefined =>
  rename(input, GENERATOR);
export const normalizeTokenizeRequest = (input: unknown): Fields | undefined =>
  rename(input, TOKENIZE);
export const normalizeDetokenizeRequest = (input: unknown): Fields | undefined =>
  rename(input, DETOKENIZE);
export const normalizeEmbedRequest = (input: unknown): Fields | undefined => rename(input, EMBED);

/** A string means {model}. Fields of a generation that stand beside those of a load belong into
 * `parameters`; what `parameters` says itself wins. */
export function normalizeLoadModelOptions(input: unknown): Fields | undefined {
  if (typeof input === 'string') return { model: input };
  const renamed = rename(input, LOAD);
  if (renamed === undefined) return undefined;
  const isInline = (key: string): boolean => key !== 'model' && GENERATOR_NAMES.has(key);
  const fields = Object.entries(renamed);
  const output: Fields = Object.fromEntries(fields.filter(([key]) => !isInline(key)));
  const inline: Fields = Object.fromEntries(fields.filter(([key]) => isInline(key)));
  const own = output['parameters'];
  if (Object.keys(inline).length > 0 || isObject(own)) {
    output['parameters'] = {
      ...normalizeGeneratorParams(inline), ...normalizeGeneratorParams(own ?? {}),
    };
  }
  return output;
}

function invert(input: unknown, aliases: Record<string, string>): Fields | undefined {
  const normal = rename(input, aliases);
  if (normal === undefined) return undefined;
  const snake = new Map<string, string>();
  for (const [alias, name] of Object.entries(aliases)) {
    if (!snake.has(name)) snake.set(name, alias);
  }
  const output: Fields = Object.fromEntries(
    Object.entries(normal).map(([key, value]) => [snake.get(key) ?? key, value]));
  if (normal['model'] !== undefined) output['model'] = normal['model'];
  return output;
}

/** The snake forms; the model under both `model` and `model_id`. */
export const denormalizeGeneratorParams = (input: unknown): Fields | undefined =>
  invert(input, GENERATOR);
export const denormalizeLoadModelOptions = (input: unknown): Fields | undefined =>
  invert(typeof input === 'string' ? { model: input } : input, LOAD);
export const denormalizeTokenizeRequest = (input: unknown): Fields | undefined =>
  invert(input, TOKENIZE);
