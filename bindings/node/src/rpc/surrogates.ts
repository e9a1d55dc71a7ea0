// Half a surrogate pair is no character: JavaScript's strings may hold one, UTF-8 may not, and a
// runtime would refuse the whole line without knowing whose it was.

const LONE = /\p{Surrogate}/u;

/** The name of the first field that holds one, as `messages.0.content`. */
export function fieldWithLoneSurrogate(value: unknown, name = ''): string | undefined {
  if (typeof value === 'string') return LONE.test(value) ? name : undefined;
  if (typeof value !== 'object' || value === null) return undefined;
  for (const [key, inner] of Object.entries(value)) {
    if (typeof inner === 'number') continue;
    if (LONE.test(key)) return name;
    const found = fieldWithLoneSurrogate(inner, name === '' ? key : `${name}.${key}`);
    if (found !== undefined) return found;
  }
  return undefined;
}

/** JSON writes them as `\ud…`; a text may hold those five characters by itself, so this may err. */
export const mayHoldLoneSurrogate = (json: string): boolean => json.includes('\\ud');
