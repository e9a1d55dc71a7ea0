// Reads the page of metrics as Prometheus does.

export interface Sample {
  name: string;
  labels: Record<string, string>;
  value: number;
}

export async function scrape(port: number | undefined): Promise<Sample[]> {
  const answer = await fetch(`http://127.0.0.1:${port}/metrics`);
  return parse(await answer.text());
}

export function parse(page: string): Sample[] {
  const samples: Sample[] = [];
  for (const line of page.split('\n')) {
    if (line === '' || line.startsWith('#')) continue;
    const found = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!found) throw new Error(`no sample: ${line}`);
    const labels: Record<string, string> = {};
    for (const [, key, value] of (found[2] ?? '').matchAll(/(\w+)="((?:\\.|[^"\\])*)"/g)) {
      labels[key as string] = value as string;
    }
    samples.push({ name: found[1] as string, labels, value: Number(found[3]) });
  }
  return samples;
}

/** Sum over the samples of that name that have these labels; undefined of none. */
export function valueOf(samples: Sample[], name: string, labels: Record<string, string> = {}) {
  const found = samples.filter((sample) => sample.name === name
    && Object.entries(labels).every(([key, value]) => sample.labels[key] === value));
  return found.length ? found.reduce((sum, sample) => sum + sample.value, 0) : undefined;
}
