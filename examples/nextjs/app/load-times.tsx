"use client";

import { useEffect, useState } from "react";

/** One load of the page: how long each photo took, from when the browser wanted it to its last byte, and all of them. */
interface Load {
  route: string;
  milliseconds: Record<string, number>;
}

const STORED = "loads";
const SHOWN = 3;

/** A table of this tab's last loads, one column each, filled in when all photos are there. */
export function LoadTimes({ route }: { route: string }) {
  const [loads, setLoads] = useState<Load[]>([]);

  useEffect(() => {
    const images = [...document.querySelectorAll<HTMLImageElement>(".photos img")];
    const observer = new PerformanceObserver(() => {
      const entries = images.flatMap((image) => performance.getEntriesByName(image.currentSrc, "resource").slice(0, 1));
      if (entries.length < images.length) return;
      observer.disconnect();
      const milliseconds = Object.fromEntries(images.map((image, index) => [image.alt, entries[index].duration]));
      const start = Math.min(...entries.map((entry) => entry.startTime));
      const end = Math.max(...entries.map((entry) => entry.startTime + entry.duration));
      milliseconds["all of them"] = end - start;
      const earlier: Load[] = JSON.parse(sessionStorage.getItem(STORED) ?? "[]");
      const all = [...earlier, { route, milliseconds }].slice(-SHOWN);
      sessionStorage.setItem(STORED, JSON.stringify(all));
      setLoads(all);
    });
    observer.observe({ type: "resource", buffered: true });
    return () => observer.disconnect();
  }, [route]);

  const last = loads.at(-1);
  if (!last) return null;
  return (
    <table>
      <caption>How long each photo took in this tab&rsquo;s last loads, in milliseconds</caption>
      <thead>
        <tr>
          <th scope="col">Load</th>
          {loads.map((load, index) => (
            <th scope="col" key={index}>
              {load.route}
            </th>
          ))}
        </tr>
      </thead>
      <tbody>
        {Object.keys(last.milliseconds).map((photo) => (
          <tr key={photo}>
            <th scope="row">{photo}</th>
            {loads.map((load, index) => (
              <td key={index}>{load.milliseconds[photo]?.toFixed(0)}</td>
            ))}
          </tr>
        ))}
      </tbody>
    </table>
  );
}
