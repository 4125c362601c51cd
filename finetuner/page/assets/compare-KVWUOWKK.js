import{j as t,l as o}from"./chunk-5IVPSIAI.js";function e(){return t(o,{title:"compare"})}export{e as default};
