// The folder of packed weights, as it lies on the disk. The runtime maps its files in place, checks
// them when it opens them and removes what is damaged; the least recently used goes first.
import { readdir, stat } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import type { Config } from './config.js';
import type { CacheHealth, EngineOptions } from './types.js';

const BYTES_MAX_DEFAULT = 16 * 1024 ** 3;
const NEAR = 0.9;

export async function artifactCacheHealth(options: EngineOptions,
  config: Config): Promise<CacheHealth> {
  const folder = options.cache?.cacheDir ?? options.cacheDir ?? config.cache.cache_dir
    ?? process.env['KR_CACHE_DIR'] ?? join(homedir(), '.cache', 'kr');
  const bytesMax = options.cache?.maxSizeBytes ?? config.cache.max_size_bytes ?? BYTES_MAX_DEFAULT;
  let sizeBytes = 0;
  let entryCount = 0;
  let healthy = true;
  try {
    for (const entry of await readdir(folder, { withFileTypes: true })) {
      if (!entry.isFile()) continue;
      sizeBytes += (await stat(join(folder, entry.name))).size;
      entryCount += 1;
    }
  } catch (error) {
    // A folder that is not there yet is an empty cache.
    healthy = (error as NodeJS.ErrnoException).code === 'ENOENT';
  }
  return {
    healthy, sizeBytes, entryCount, nearLimit: sizeBytes >= NEAR * bytesMax, corruptedEntries: [],
  };
}
