// Large arrays of messages in shared memory, where a transport has it: agreed on behind the start,
// then put into requests and taken out of answers. All above sees ordinary arrays.
import { isObject } from '../objects.js';
import type { Transport, SharedDescriptor } from '../transport/transport.js';
import type { Params } from './connection.js';

const MIN_BYTES = 1_000_000;
/** No tensor is larger: as good as none. */
const NEVER_BYTES = 2 ** 28;
/** Fields of requests that may be token ids. */
const TOKENS = ['prompt_tokens', 'tokens'] as const;

export interface TensorCounts {
  shared: number;
  /** Arrays of MIN_BYTES or more that went as JSON. */
  fallbacks: number;
}

function isDescriptor(value: unknown): value is SharedDescriptor {
  return isObject(value) && typeof value['generation'] === 'number' && 'kind' in value;
}

function rowsOf(values: Float32Array, shape: readonly number[]): number[][] {
  const [n = 0, width = 0] = shape;
  return Array.from({ length: n }, (_, row) => Array.from(
    values.subarray(row * width, (row + 1) * width)));
}

/** What runtime/info asks for. */
export function sharedRequest(transport: Transport): Params {
  if (transport.takeShared === undefined || transport.giveShared === undefined) return {};
  return { shared_memory: { min_bytes: MIN_BYTES } };
}

/** Behind runtime/info, whose answer is `info`. Whether both sides see the same memory is tried
 * out; where they do not, JSON it is. */
export async function agreeOnShared(transport: Transport, info: unknown,
  call: (method: string, params: Params) => Promise<unknown>): Promise<Tensors | undefined> {
  const offer = isObject(info) ? info['shared_memory'] : undefined;
  if (transport.giveShared === undefined || !isObject(offer) || offer['enabled'] !== true) {
    return undefined;
  }
  const tensors = new Tensors(transport);
  const given: SharedDescriptor[] = [];
  try {
    const tensor = transport.giveShared(Buffer.from('kr'));
    given.push(tensor);
    await call('runtime/echo', { tensor });
    return tensors;
  } catch {
    await call('runtime/info', { shared_memory: { min_bytes: NEVER_BYTES } });
    return undefined;
  } finally {
    tensors.release(given);
  }
}

export class Tensors {
  readonly counts: TensorCounts = { shared: 0, fallbacks: 0 };

  constructor(private readonly transport: Transport) {}

  /** The same params with descriptors in place of what is large, and those descriptors. */
  share(params: Params): { params: Params; given: SharedDescriptor[] } {
    const given: SharedDescriptor[] = [];
    return { params: this.shareIn(params, given), given };
  }

  /** Behind the answer nothing of what was given stays. */
  release(given: readonly SharedDescriptor[]): void {
    for (const descriptor of given) this.transport.releaseShared?.(descriptor);
  }

  /** Takes every tensor of a result, in place. */
  resolve(result: unknown): void {
    if (!isObject(result)) return;
    if (Array.isArray(result['results'])) {
      for (const item of result['results']) if (isObject(item)) this.resolve(item['result']);
      return;
    }
    const { tokens, embeddings } = result;
    if (isDescriptor(tokens)) result['tokens'] = Array.from(new Int32Array(this.take(tokens)));
    if (isDescriptor(embeddings)) {
      const values = new Float32Array(this.take(embeddings));
      result['embeddings'] = rowsOf(values, embeddings['shape'] as number[]);
    }
  }

  private take(descriptor: SharedDescriptor): ArrayBuffer {
    const data = this.transport.takeShared?.(descriptor);
    if (data === undefined) throw new Error('this transport has no shared memory');
    this.counts.shared += 1;
    return data.buffer as ArrayBuffer;
  }

  private shareIn(params: Params, given: SharedDescriptor[]): Params {
    if (Array.isArray(params['requests'])) {
      const requests = params['requests'].map((item: unknown) => (
        isObject(item) ? this.shareIn(item, given) : item));
      return { ...params, requests };
    }
    for (const field of TOKENS) {
      const value = params[field];
      if (!Array.isArray(value) || value.length * 4 < MIN_BYTES) continue;
      if (!value.every((id: unknown) => typeof id === 'number' && id >= 0 && id < 2 ** 31)) continue;
      const descriptor = this.give(value as number[]);
      if (descriptor === undefined) continue;
      given.push(descriptor);
      return { ...params, [field]: descriptor };
    }
    return params;
  }

  private give(tokens: readonly number[]): SharedDescriptor | undefined {
    try {
      const descriptor = this.transport.giveShared?.(Int32Array.from(tokens));
      if (descriptor !== undefined) this.counts.shared += 1;
      return descriptor;
    } catch {
      this.counts.fallbacks += 1; // no memory for it: JSON has its own limits
      return undefined;
    }
  }
}
