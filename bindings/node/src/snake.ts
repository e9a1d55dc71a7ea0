// The second spelling of each method. One list; the types follow from it, and a name that is
// missing here does not compile.
import type { EngineMethods } from './api.js';

const NAMES = [
  'loadModel', 'loadDraftModel', 'unloadModel', 'unloadDraftModel', 'isDraftModelCompatible',
  'createGenerator', 'generate', 'chat', 'cancel', 'tokenize', 'detokenize', 'countTokens', 'embed',
  'listModels', 'getModelInfo', 'getRuntimeInfo', 'getTelemetryReport', 'reloadConfig',
  'healthCheck', 'warmupModel', 'getCacheStats', 'getArtifactCacheHealth', 'loadVisionModel',
  'createVisionGenerator', 'getBatchStats', 'resetBatchStats', 'flushBatches', 'getStreamMetrics',
  'getReuseStats', 'getQosReport', 'shutdown', 'dispose',
] as const satisfies readonly (keyof EngineMethods)[];

type Missing = Exclude<keyof EngineMethods, (typeof NAMES)[number]>;
const nothingIsMissing: Missing extends never ? true : Missing = true;
void nothingIsMissing;

export const METHOD_NAMES: readonly (keyof EngineMethods)[] = NAMES;

export function snakeCase(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

/** Gives a class the snake_case twins of its methods. */
export function addSnakeNames(prototype: object): void {
  for (const name of NAMES) {
    const alias = snakeCase(name);
    if (alias === name) continue;
    Object.defineProperty(prototype, alias, {
      configurable: true, writable: true, enumerable: false,
      value(this: EngineMethods, ...args: never[]): unknown {
        return (this[name] as (...all: never[]) => unknown)(...args);
      },
    });
  }
}
