// The addon `napi.node`: a runtime inside this process, and shared memory. It is built with the rest
// of kr and lies in prebuilds/; without it the child process speaks JSON only.
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { EngineClientError } from '../errors.js';

/** Opaque; lives as long as it is held or has not said "closed". */
export type AddonHandle = { readonly isHandle: unique symbol };
export type AddonEvent = 'ready' | 'lines' | 'drained' | 'closed';
export type SharedData = Uint8Array | Int32Array | Float32Array;

export interface Addon {
  readonly version: string;
  open(args: readonly string[],
    callback: (kind: AddonEvent, value: string | string[]) => void): AddonHandle;
  /** Bytes that wait for the runtime to take them; "drained" follows when some do. */
  send(handle: AddonHandle, line: string): number;
  end(handle: AddonHandle): void;
  /** handle: of descriptors that came through its socket; name: of named segments. */
  take(handle: AddonHandle | null, name: string | null, generation: number, dtype: number,
    d0: number, d1: number): ArrayBuffer;
  give(handle: AddonHandle | null, data: SharedData, generation: number, d0: number,
    d1: number): string | null;
  unlink(name: string): void;
  /** Removes what dead processes have left; how many. */
  sweep(): number;
}

const NAME = join('prebuilds', `${process.platform}-${process.arch}`, 'napi.node');
let known: { addon: Addon | undefined; why: string } | undefined;

/** In the package that this file belongs to; KR_ADDON names another file. */
function addonPath(): string | undefined {
  const named = process.env['KR_ADDON'];
  if (named !== undefined && named !== '') return named;
  for (let folder = __dirname; ; folder = dirname(folder)) {
    if (existsSync(join(folder, 'package.json'))) {
      const path = join(folder, NAME);
      return existsSync(path) ? path : undefined;
    }
    if (dirname(folder) === folder) return undefined;
  }
}

function load(): { addon: Addon | undefined; why: string } {
  const path = addonPath();
  if (path === undefined) return { addon: undefined, why: `there is no ${NAME}` };
  try {
    return { addon: require(path) as Addon, why: '' };
  } catch (error) {
    return { addon: undefined, why: (error as Error).message };
  }
}

export function findAddon(): Addon | undefined {
  known ??= load();
  return known.addon;
}

export function needAddon(): Addon {
  const addon = findAddon();
  if (addon !== undefined) return addon;
  throw new EngineClientError('RuntimeError',
    `transport 'in-process' needs the addon of kr-serve: ${known?.why ?? ''}`);
}
