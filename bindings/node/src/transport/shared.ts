// Payloads in shared memory, of one connection: segments that the runtime names are copied out and
// gone, those that are given to it are remembered until its answer has come, so that nothing is left
// whoever dies.
import { EngineClientError } from '../errors.js';
import type { Addon, AddonHandle, SharedData } from './addon.js';
import type { SharedDescriptor } from './transport.js';

const DTYPES = ['', 'u8', 'i32', 'f32'];

export interface SharedCounts {
  segmentsIn: number;
  bytesIn: number;
  segmentsOut: number;
  bytesOut: number;
  /** Of payloads: one for each that came, one for each that was written into a segment. */
  copies: number;
}

interface Checked {
  kind: 'posix' | 'memfd';
  name: string | null;
  generation: number;
  dtype: number;
  shape: [number] | [number, number];
}

function bad(what: string): EngineClientError {
  return new EngineClientError('TransportError', `a descriptor of shared memory: ${what}`);
}

function isSize(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) > 0;
}

/** What the other side says is not believed. */
export function checkDescriptor(descriptor: SharedDescriptor): Checked {
  const { kind, name, generation, dtype, shape } = descriptor;
  if (kind !== 'posix' && kind !== 'memfd') throw bad('its kind');
  if (kind === 'posix' ? typeof name !== 'string' : name !== undefined) throw bad('its name');
  if (!isSize(generation)) throw bad('its generation');
  const type = typeof dtype === 'string' && dtype !== '' ? DTYPES.indexOf(dtype) : -1;
  if (type < 0) throw bad('its dtype');
  const isShape = Array.isArray(shape) && shape.length >= 1 && shape.length <= 2
    && shape.every(isSize);
  if (!isShape) throw bad('its shape');
  return {
    kind, name: (name as string | undefined) ?? null, generation, dtype: type,
    shape: shape as [number] | [number, number],
  };
}

export class SharedMemory {
  readonly counts: SharedCounts = {
    segmentsIn: 0, bytesIn: 0, segmentsOut: 0, bytesOut: 0, copies: 0,
  };
  private generation = 0;
  private readonly given = new Set<string>();

  /** handle: the in-process runtime, whose segments have no names; null: a child's have. */
  constructor(private readonly addon: Addon, private readonly handle: AddonHandle | null) {}

  /** Over an ArrayBuffer of its own, from offset 0. */
  take(descriptor: SharedDescriptor): Buffer {
    const { kind, name, generation, dtype, shape } = checkDescriptor(descriptor);
    if ((kind === 'posix') !== (this.handle === null)) throw bad('its kind');
    let data: ArrayBuffer;
    try {
      data = this.addon.take(this.handle, name, generation, dtype, shape[0], shape[1] ?? 0);
    } catch (error) {
      throw new EngineClientError('TransportError', `shared memory: ${(error as Error).message}`,
        undefined, error);
    }
    this.counts.segmentsIn += 1;
    this.counts.bytesIn += data.byteLength;
    this.counts.copies += 1;
    return Buffer.from(data);
  }

  give(data: SharedData, shape: readonly number[] = [data.length]): SharedDescriptor {
    const generation = ++this.generation;
    const name = this.addon.give(this.handle, data, generation, shape[0] ?? 0, shape[1] ?? 0);
    if (name !== null) this.given.add(name);
    this.counts.segmentsOut += 1;
    this.counts.bytesOut += data.byteLength;
    this.counts.copies += 1;
    const dtype = data instanceof Float32Array ? 'f32' : data instanceof Int32Array ? 'i32' : 'u8';
    const rest = { generation, dtype, shape: [...shape], bytes: data.byteLength };
    return name === null ? { kind: 'memfd', ...rest } : { kind: 'posix', name, ...rest };
  }

  /** The runtime has answered: whether it took the segment or not, nobody needs its name. */
  release(descriptor: SharedDescriptor): void {
    const { name } = descriptor;
    if (typeof name === 'string' && this.given.delete(name)) this.addon.unlink(name);
  }

  /** Of a child, once it has been reaped: what it gave and nobody took goes, too. */
  end(): void {
    for (const name of this.given) this.addon.unlink(name);
    this.given.clear();
    if (this.handle === null) this.addon.sweep();
  }
}
